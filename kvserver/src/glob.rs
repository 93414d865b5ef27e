//! Glob patterns as in KEYS, SCAN and CONFIG GET: `*`, `?`, `[a-z]`, `[^a]`, `\x`.
//!
//! Matching is iterative with one point of return, so the work is at most pattern × text: a pattern of many stars
//! cannot make it exponential.

/// Whether `text` matches `pattern`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, with the star taking one byte more.
    let mut back: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            p += 1;
            back = Some((p, t));
            continue;
        }
        if t == text.len() {
            return p == pattern.len();
        }
        if p < pattern.len()
            && let (true, next) = one(pattern, p, text[t])
        {
            p = next;
            t += 1;
            continue;
        }
        match back {
            None => return false,
            Some((star, from)) => {
                p = star;
                t = from + 1;
                back = Some((star, t));
            }
        }
    }
}

/// Whether the element of the pattern at `p` takes `byte`, and where the next element begins.
fn one(pattern: &[u8], p: usize, byte: u8) -> (bool, usize) {
    match pattern[p] {
        b'?' => (true, p + 1),
        b'[' => class(pattern, p + 1, byte),
        b'\\' if p + 1 < pattern.len() => (pattern[p + 1] == byte, p + 2),
        literal => (literal == byte, p + 1),
    }
}

fn class(pattern: &[u8], mut p: usize, byte: u8) -> (bool, usize) {
    let negated = pattern.get(p) == Some(&b'^');
    p += usize::from(negated);
    let mut hit = false;
    while let Some(&c) = pattern.get(p) {
        match c {
            b']' => return (hit != negated, p + 1),
            b'\\' if p + 1 < pattern.len() => {
                hit |= pattern[p + 1] == byte;
                p += 2;
            }
            _ if pattern.get(p + 1) == Some(&b'-') && p + 2 < pattern.len() => {
                let (a, b) = (c.min(pattern[p + 2]), c.max(pattern[p + 2]));
                hit |= (a..=b).contains(&byte);
                p += 3;
            }
            _ => {
                hit |= c == byte;
                p += 1;
            }
        }
    }
    // An unclosed class ends with the pattern.
    (hit != negated, p)
}

/// The bytes that every match begins with.
pub fn literal_prefix(pattern: &[u8]) -> Vec<u8> {
    let mut prefix = Vec::new();
    let mut rest = pattern;
    loop {
        match rest {
            [] | [b'*' | b'?' | b'[', ..] => return prefix,
            [b'\\', escaped, tail @ ..] => {
                prefix.push(*escaped);
                rest = tail;
            }
            [literal, tail @ ..] => {
                prefix.push(*literal);
                rest = tail;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let yes = [
            ("*", ""),
            ("*", "abc"),
            ("h?llo", "hello"),
            ("h*llo", "heeeello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hbllo"),
            ("h[a-c]llo", "hbllo"),
            ("h[c-a]llo", "hbllo"),
            ("a\\*b", "a*b"),
            ("*a*b*", "xxaxxbxx"),
            ("[a\\]]", "]"),
        ];
        let no = [
            ("h?llo", "hllo"),
            ("h[^e]llo", "hello"),
            ("a", "ab"),
            ("", "a"),
            ("a\\*b", "axb"),
            ("*ab", "aba"),
        ];
        yes.iter().for_each(|(p, t)| assert!(matches(p.as_bytes(), t.as_bytes()), "{p} {t}"));
        no.iter().for_each(|(p, t)| assert!(!matches(p.as_bytes(), t.as_bytes()), "{p} {t}"));
    }

    #[test]
    fn many_stars_stay_polynomial() {
        let pattern = b"a*".repeat(500);
        assert!(!matches(&[&pattern[..], b"b"].concat(), &[b'a'; 5000]));
    }

    #[test]
    fn the_prefix_is_what_every_match_begins_with() {
        assert_eq!(literal_prefix(b"usr/bin/git*"), b"usr/bin/git");
        assert_eq!(literal_prefix(b"a\\*b?c"), b"a*b");
    }
}
