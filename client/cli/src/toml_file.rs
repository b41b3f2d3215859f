//! TOML files as the user meets them: every mistake is named with file, line, key, and the key that was probably meant.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::exit::{Exit, Failure, Result};

/// Reads a file's text.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| Failure::io(path.display(), error))
}

/// Parses `text`, which came from `path`.
pub fn parse<C: DeserializeOwned>(path: &Path, text: &str) -> Result<C> {
    toml::from_str(text).map_err(|error| explain(path, text, &error))
}

fn explain(path: &Path, text: &str, error: &toml::de::Error) -> Failure {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = match line {
        Some(line) => format!("{}:{line}", path.display()),
        None => path.display().to_string(),
    };
    // serde: "unknown field `lisen`, expected one of `a`, `b`" or "expected `a`".
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    if let (true, Some(key)) = (message.starts_with("unknown field"), quoted.next()) {
        let known: Vec<_> = quoted.collect();
        let failure = Failure::new(Exit::Usage, format!("{place}: unknown key `{key}`"));
        return match closest(key, &known) {
            Some(meant) => failure.hint(format!("did you mean `{meant}`?")),
            None => failure.hint(format!("known keys here: {}", known.join(", "))),
        };
    }
    let message = message.replace("missing field", "missing key").replace('\n', " ");
    Failure::new(Exit::Usage, format!("{place}: {message}"))
}

/// The known word nearest to `word`, if it is near at all.
fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = (word.len() / 3).max(1);
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(far, _)| *far <= limit)
        .min()
        .map(|(_, word)| word)
}

/// Levenshtein distance, with neighbours exchanged counted once, by bytes (keys are ASCII).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let same = usize::from(a[i - 1] != b[j - 1]);
                    let mut best =
                        (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + same);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        best = best.min(rows[i - 2][j - 2] + 1);
                    }
                    best
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Sample {
        listen: String,
        lease: Option<u32>,
    }

    fn fail(text: &str) -> Failure {
        parse::<Sample>(Path::new("x.toml"), text).unwrap_err()
    }

    #[test]
    fn a_typo_is_named_with_its_line_and_what_was_meant() {
        let failure = fail("# comment\nlease = 3\nlisetn = \"a\"\n");
        assert_eq!(failure.message, "x.toml:3: unknown key `lisetn`");
        assert_eq!(failure.hint.as_deref(), Some("did you mean `listen`?"));
    }

    #[test]
    fn a_stranger_gets_the_list() {
        let failure = fail("listen = \"a\"\ncolour = 1\n");
        assert_eq!(failure.message, "x.toml:2: unknown key `colour`");
        assert_eq!(failure.hint.as_deref(), Some("known keys here: listen, lease"));
    }

    #[test]
    fn wrong_types_and_syntax_name_the_line() {
        assert!(fail("listen = \"a\"\nlease = \"x\"\n").message.starts_with("x.toml:2: "));
        assert!(fail("listen = \n").message.starts_with("x.toml:1: "));
        assert!(fail("lease = 1\n").message.contains("missing key `listen`"));
    }
}
