//! Requests: the same commands however the bytes arrive; what was understood, written as arrays, is understood the same.

use kvserver::resp::{Limits, Parser, Pipeline, ProtocolError};

type Commands = Vec<Vec<Vec<u8>>>;

/// Parses pieces as a connection does: what complete commands took is dropped.
fn parse(pieces: &[&[u8]], limits: Limits) -> (Commands, Result<usize, ProtocolError>) {
    let (mut parser, mut buf, mut commands) = (Parser::default(), Vec::new(), Commands::new());
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            let mut pipeline = Pipeline::default();
            let result = parser.parse(&mut buf, limits, &mut pipeline);
            for i in 0..pipeline.len() {
                let command = pipeline.command(i);
                assert!(!command.is_empty(), "a command without a name");
                assert!(command.windows(2).all(|pair| pair[0].end <= pair[1].start), "arguments overlap");
                commands.push(command.iter().map(|span| buf[span.start..span.end].to_vec()).collect());
            }
            if let Err(error) = result {
                return (commands, Err(error));
            }
            let consumed = parser.consumed();
            assert!(consumed <= buf.len());
            let missing = parser.missing(buf.len());
            assert!(missing <= 512 << 20 | 3, "more is missing than a bulk string has");
            buf.drain(..consumed);
            parser.advance(consumed);
            if pipeline.len() < limits.commands {
                break;
            }
        }
    }
    (commands, Ok(buf.len()))
}

/// The bytes: where the input is split, whether the client has authenticated, the input.
pub fn resp(bytes: &[u8]) {
    let mut source = super::Source(bytes);
    let (a, b) = (usize::from(source.u16()), usize::from(source.u16()));
    let limits = Limits { authenticated: !source.u8().is_multiple_of(4), commands: 1 + source.below(8) };
    let input = source.0;
    let whole = parse(&[input], limits);
    let (a, b) = (a % (input.len() + 1), b % (input.len() + 1));
    let (a, b) = (a.min(b), a.max(b));
    assert_eq!(parse(&[&input[..a], &input[a..b], &input[b..]], limits), whole, "split at {a} and {b}");
    if input.len() <= 300 {
        let single: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(parse(&single, limits), whole, "one byte at a time");
    }
    let mut again = Vec::new();
    for command in &whole.0 {
        again.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
        for argument in command {
            again.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            again.extend_from_slice(argument);
            again.extend_from_slice(b"\r\n");
        }
    }
    // Inline commands may have more arguments than an array before authentication.
    let limits = Limits { authenticated: true, ..limits };
    assert_eq!(parse(&[&again], limits), (whole.0, Ok(0)), "written as arrays");
}
