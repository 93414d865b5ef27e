//! Numbers as Redis reads and writes them.
//!
//! Integers are strict (no sign `+`, no leading zeros, no blanks): what INCR accepts must be what it would write. Floats
//! are added exactly in decimal where 17 decimals suffice, so `10.5 + 0.1` is `10.6`.

/// Parses a signed integer strictly.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut n: i64 = 0;
    for &d in digits {
        if !d.is_ascii_digit() {
            return None;
        }
        // Negative all along: the range of i64 is larger on that side.
        n = n.checked_mul(10)?.checked_sub(i64::from(d - b'0'))?;
    }
    if negative { Some(n) } else { n.checked_neg() }
}

/// A float: exact in decimal if it fits, binary otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Float {
    /// In units of 10⁻¹⁷.
    Exact(i128),
    /// Everything else that is a number; never NaN.
    Binary(f64),
}

const DECIMALS: usize = 17;
const UNIT: i128 = 10i128.pow(DECIMALS as u32);

impl Float {
    /// Parses a float; `None` for NaN and for anything that is not a number.
    pub fn parse(text: &[u8]) -> Option<Float> {
        if text.is_empty() || text.len() > 5 * 1024 || !text[0].is_ascii_graphic() {
            return None;
        }
        if let Some(exact) = parse_exact(text) {
            return Some(Float::Exact(exact));
        }
        let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
        (!value.is_nan()).then_some(Float::Binary(value))
    }

    /// The value as binary float.
    pub fn value(self) -> f64 {
        match self {
            Float::Exact(n) => n as f64 / UNIT as f64,
            Float::Binary(f) => f,
        }
    }

    /// The sum, or `None` if it is infinite or NaN.
    pub fn plus(self, other: Float) -> Option<Float> {
        if let (Float::Exact(a), Float::Exact(b)) = (self, other)
            && let Some(sum) = a.checked_add(b)
        {
            return Some(Float::Exact(sum));
        }
        let sum = self.value() + other.value();
        sum.is_finite().then_some(Float::Binary(sum))
    }

    /// The shortest text without exponent.
    pub fn format(self) -> String {
        match self {
            Float::Binary(f) => format!("{f}"),
            Float::Exact(n) => {
                let sign = if n < 0 { "-" } else { "" };
                let (whole, part) = (n.unsigned_abs() / UNIT as u128, n.unsigned_abs() % UNIT as u128);
                if part == 0 {
                    return format!("{sign}{whole}");
                }
                let part = format!("{part:017}");
                format!("{sign}{whole}.{}", part.trim_end_matches('0'))
            }
        }
    }
}

/// `[+-]digits[.digits]` with at most 19 digits before the point and 17 behind it.
fn parse_exact(text: &[u8]) -> Option<i128> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let point = memchr::memchr(b'.', text).unwrap_or(text.len());
    let (whole, part) = (&text[..point], text.get(point + 1..).unwrap_or_default());
    if whole.len() > 19 || part.len() > DECIMALS || (whole.is_empty() && part.is_empty()) {
        return None;
    }
    let mut n: i128 = 0;
    for &d in whole.iter().chain(part) {
        if !d.is_ascii_digit() {
            return None;
        }
        n = n * 10 + i128::from(d - b'0');
    }
    n *= 10i128.pow((DECIMALS - part.len()) as u32);
    Some(if negative { -n } else { n })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_strictly() {
        assert_eq!(parse_i64(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(parse_i64(b"-9223372036854775808"), Some(i64::MIN));
        for bad in
            ["", "-", "-0", "+1", "01", " 1", "1 ", "9223372036854775808", "1e3", "99999999999999999999"]
        {
            assert_eq!(parse_i64(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn decimal_sums_are_exact() {
        let sum = |a: &str, b: &str| {
            Float::parse(a.as_bytes()).unwrap().plus(Float::parse(b.as_bytes()).unwrap()).unwrap().format()
        };
        assert_eq!(sum("10.5", "0.1"), "10.6");
        assert_eq!(sum("5.0e3", "2.0e2"), "5200");
        assert_eq!(sum("-1.25", "1.25"), "0");
        assert_eq!(sum("0", "-0.003"), "-0.003");
        assert_eq!(Float::parse(b"nan"), None);
        assert_eq!(Float::parse(b" 1"), None);
        assert_eq!(Float::parse(b"1").unwrap().plus(Float::parse(b"inf").unwrap()), None);
    }
}
