//! The cluster's shared token: who has it belongs to the cluster.

use std::fmt;
use std::str::FromStr;

/// 32 random bytes, 64 hexadecimal digits in files. Never printed by `Debug`, compared in constant time.
#[derive(Clone, Copy, Eq)]
pub struct Token(pub [u8; 32]);

/// Not a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a cluster token is 64 hexadecimal digits; copy it from cluster.toml of the machine that made the cluster"
)]
pub struct BadToken;

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        // Every byte is looked at, so that the time taken says nothing about where they differ.
        self.0.iter().zip(&other.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// The text that goes into `cluster.toml`. Deliberately not `Display`: a token is never printed in passing.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for Token {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Token, BadToken> {
        let digits = text.trim().as_bytes();
        if digits.len() != 64 {
            return Err(BadToken);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16).ok_or(BadToken);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Token(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_hides_from_logs() {
        let token = Token(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(token.to_hex().parse(), Ok(token));
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "12", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(text.parse::<Token>(), Err(BadToken));
        }
    }
}
