//! The plots, as SVG: throughput over records inserted, latency percentiles, bytes written per byte inserted.
//!
//! Lines only, and text as SVG text, so that no fonts of the system are needed. Throughput and latency have logarithmic axes:
//! the engines differ by orders of magnitude, and a linear axis would show one of them and a floor.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::phases::PhaseName;
use crate::report::{Comparison, EngineRun};
use crate::series::{bytes_per_byte, rates};

const SIZE: (u32, u32) = (960, 540);
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// A line with its name.
type Line = (String, Vec<(f64, f64)>);
/// A chart's words.
struct Words<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
}

/// Draws what there is to draw into `dir`; returns titles and file names.
///
/// # Errors
/// If a file cannot be written.
pub fn draw_all(dir: &Path, comparison: &Comparison) -> Result<Vec<(String, String)>> {
    let mut drawn = Vec::new();
    let mut draw = |file: &str, words: Words<'_>, lines: Vec<Line>, kind: Axes| -> Result<()> {
        let lines: Vec<Line> = lines.into_iter().filter(|(_, points)| points.len() > 1).collect();
        if !lines.is_empty() {
            draw_chart(&dir.join(file), &words, &lines, kind)?;
            drawn.push((words.title.to_string(), file.to_string()));
        }
        Ok(())
    };
    let words = Words { title: "Random inserts", x: "million records inserted", y: "records per second" };
    draw("throughput.svg", words, each(comparison, PhaseName::Load, throughput), Axes::LogY)?;
    let words = Words {
        title: "Bytes written per byte inserted",
        x: "million records inserted",
        y: "bytes per byte",
    };
    draw(
        "write-amplification.svg",
        words,
        each(comparison, PhaseName::Load, |run| amplification(comparison, run)),
        Axes::Linear,
    )?;
    for (phase, file, title) in [
        (PhaseName::Load, "latency-insert.svg", "Latency of a commit in the random load"),
        (PhaseName::Get, "latency-get.svg", "Latency of a random get, cold start, 1 thread"),
        (PhaseName::Miss, "latency-miss.svg", "Latency of a miss"),
        (PhaseName::Scan, "latency-scan.svg", "Latency of a scan of 100 rows"),
    ] {
        let words = Words { title, x: "percentile", y: "microseconds" };
        draw(file, words, each(comparison, phase, |run| latency(run, phase)), Axes::Percentiles)?;
    }
    Ok(drawn)
}

fn each(
    comparison: &Comparison,
    phase: PhaseName,
    points: impl Fn(&EngineRun) -> Option<Vec<(f64, f64)>>,
) -> Vec<Line> {
    comparison
        .runs
        .iter()
        .map(|run| {
            let batch = run.phase(PhaseName::Load).map_or(1, |load| load.batch);
            let name = match phase {
                PhaseName::Load => format!("{} (batch {batch})", run.engine),
                _ => run.engine.to_string(),
            };
            (name, points(run).unwrap_or_default())
        })
        .collect()
}

fn throughput(run: &EngineRun) -> Option<Vec<(f64, f64)>> {
    let series = &run.phase(PhaseName::Load)?.series;
    let inserted = series.last()?.done;
    // The seconds of the final sync insert nothing; the average counts them, a line down to the floor would only hide the
    // last rate. A short last reading is one of those.
    let end = series.iter().position(|point| point.done == inserted)?;
    let mut rates = rates(&series[..=end]);
    let short = end > 1 && series[end].seconds - series[end - 1].seconds < 0.5;
    if short && rates.len() > 2 {
        rates.pop();
    }
    // A second without a record has no place on a logarithmic axis; it is drawn at one record per second.
    Some(rates.into_iter().map(|(records, rate)| (records as f64 / 1e6, rate.max(1.0))).collect())
}

fn amplification(comparison: &Comparison, run: &EngineRun) -> Option<Vec<(f64, f64)>> {
    let load = run.phase(PhaseName::Load)?;
    let mut points = bytes_per_byte(&load.series, comparison.record_len());
    // The first seconds divide by almost nothing.
    points.retain(|(records, _)| *records * 50 >= load.operations);
    Some(points.into_iter().map(|(records, factor)| (records as f64 / 1e6, factor)).collect())
}

fn latency(run: &EngineRun, phase: PhaseName) -> Option<Vec<(f64, f64)>> {
    let curve = &run.phase(phase)?.latency.curve;
    Some(curve.iter().map(|&(q, ns)| (nines(q), (ns as f64 / 1e3).max(0.01))).collect())
}

/// How many nines a quantile has: 0.9 is 1, 0.99 is 2.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn percentile(nines: f64) -> String {
    let text = format!("{:.4}", 100.0 * (1.0 - 10f64.powf(-nines)));
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[derive(Clone, Copy, PartialEq)]
enum Axes {
    Linear,
    LogY,
    Percentiles,
}

fn draw_chart(path: &Path, words: &Words<'_>, lines: &[Line], kind: Axes) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    let x_max = lines.iter().flat_map(|(_, points)| points).map(|p| p.0).fold(0.0, f64::max);
    let y_min = lines.iter().flat_map(|(_, points)| points).map(|p| p.1).fold(f64::INFINITY, f64::min);
    let y_max = lines.iter().flat_map(|(_, points)| points).map(|p| p.1).fold(0.0, f64::max);
    let x_min = if kind == Axes::Percentiles { nines(0.5) } else { 0.0 };
    let x = x_min..x_max.max(x_min + 1e-6);
    let drawn = match kind {
        Axes::Linear => draw_linear(&area, words, lines, x, 0.0..(y_max * 1.05).max(1.0)),
        _ => draw_logarithmic(&area, words, lines, x, decades(y_min, y_max), kind),
    };
    drawn
        .and_then(|()| area.present().map_err(|e| e.to_string()))
        .map_err(|e| anyhow!("{}: {e}", path.display()))
}

/// The decades that hold both.
fn decades(min: f64, max: f64) -> Range<f64> {
    let (low, high) = (min.log10().floor(), max.log10().ceil());
    10f64.powf(low)..10f64.powf(if high > low { high } else { low + 1.0 })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

macro_rules! draw_lines {
    ($area:expr, $words:expr, $lines:expr, $x:expr, $y:expr, $mesh:ident => $format:expr) => {{
        let failed = |e: DrawingAreaErrorKind<_>| e.to_string();
        $area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on($area)
            .caption($words.title, ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(46)
            .y_label_area_size(72)
            .build_cartesian_2d($x, $y)
            .map_err(failed)?;
        let mut $mesh = chart.configure_mesh();
        $mesh
            .x_desc($words.x)
            .y_desc($words.y)
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 13));
        $mesh.light_line_style(RGBColor(240, 240, 240)).bold_line_style(RGBColor(215, 215, 215));
        $format;
        $mesh.draw().map_err(failed)?;
        for (i, (name, points)) in $lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
                .map_err(failed)?
                .label(name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 14))
            .draw()
            .map_err(failed)?;
        Ok(())
    }};
}

fn draw_linear(
    area: &Area<'_>,
    words: &Words<'_>,
    lines: &[Line],
    x: Range<f64>,
    y: Range<f64>,
) -> Result<(), String> {
    draw_lines!(area, words, lines, x, y, mesh => mesh.y_label_formatter(&|y| format!("{y:.0}")))
}

fn draw_logarithmic(
    area: &Area<'_>,
    words: &Words<'_>,
    lines: &[Line],
    x: Range<f64>,
    y: Range<f64>,
    kind: Axes,
) -> Result<(), String> {
    let decimals = if x.end >= 8.0 {
        0
    } else if x.end >= 0.8 {
        1
    } else {
        2
    };
    let label = |x: &f64| match kind {
        Axes::Percentiles if (x - x.round()).abs() > 1e-6 => String::new(),
        Axes::Percentiles => percentile(*x),
        _ => format!("{x:.decimals$}"),
    };
    draw_lines!(area, words, lines, x, y.log_scale(), mesh => {
        mesh.x_label_formatter(&label).y_label_formatter(&|y| crate::report::count(*y));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::comparison;

    #[test]
    fn plots_are_drawn_for_what_was_measured_and_name_every_engine() {
        let dir = tempfile::tempdir().unwrap();
        let drawn = draw_all(dir.path(), &comparison()).unwrap();
        let files: Vec<_> = drawn.iter().map(|(_, file)| file.as_str()).collect();
        assert_eq!(
            files,
            ["throughput.svg", "write-amplification.svg", "latency-insert.svg", "latency-get.svg"]
        );
        let svg = std::fs::read_to_string(dir.path().join("throughput.svg")).unwrap();
        assert!(svg.contains("betree") && svg.contains("redb") && svg.contains("records per second"));
        assert!(!svg.contains("lmdb"), "an engine without a load has no line");
    }

    #[test]
    fn percentiles_are_labelled_by_their_usual_names() {
        assert_eq!([nines(0.5), 1.0, 2.0, 3.0, 4.0].map(percentile), ["50", "90", "99", "99.9", "99.99"]);
    }

    #[test]
    fn the_seconds_of_the_final_sync_are_not_drawn() {
        let mut comparison = comparison();
        let series = &mut comparison.runs[0].phases[0].series;
        let before = series.len();
        let mut last = series[before - 1];
        for _ in 0..5 {
            last.seconds += 1.0;
            series.push(last);
        }
        let drawn = throughput(&comparison.runs[0]).unwrap();
        assert!(drawn.len() < before);
        assert!(drawn.iter().all(|(_, rate)| *rate > 1000.0));
    }

    #[test]
    fn an_axis_of_decades_holds_a_single_value() {
        assert_eq!(decades(100.0, 100.0), 100.0..1000.0);
        assert_eq!(decades(3.0, 450.0), 1.0..1000.0);
    }
}
