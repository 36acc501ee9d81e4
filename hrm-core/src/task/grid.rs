//! A task without rules: a fixed number of tokens below a vocabulary.

use super::PuzzleError;

/// A grid of `tokens` tokens, each below `vocab`. There is no verifier: every answer of the right shape may be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Grid {
    tokens: u16,
    vocab: u16,
}

impl Grid {
    /// A grid; none unless `tokens >= 1` and `2 <= vocab <= 256`.
    #[must_use]
    pub const fn new(tokens: u16, vocab: u16) -> Option<Self> {
        if tokens >= 1 && vocab >= 2 && vocab <= 256 { Some(Self { tokens, vocab }) } else { None }
    }

    /// Number of tokens.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// Size of the vocabulary.
    #[must_use]
    pub const fn vocab(&self) -> u16 {
        self.vocab
    }

    /// Reads decimal tokens, separated by commas or white space.
    ///
    /// # Errors
    /// Another character, a token outside the vocabulary, another number of tokens, a short buffer; `tokens` is undefined then.
    pub fn parse_integers(&self, text: &str, tokens: &mut [u8]) -> Result<(), PuzzleError> {
        let out = self.buffer(tokens)?;
        let mut found = 0;
        let mut number: Option<(usize, u32)> = None;
        // A separator after the end closes the last number.
        for (i, c) in text.chars().chain(core::iter::once(' ')).enumerate() {
            if let Some(d) = c.to_digit(10) {
                let (column, value) = number.unwrap_or((i + 1, 0));
                number = Some((column, value.saturating_mul(10).saturating_add(d)));
            } else if c.is_whitespace() || c == ',' {
                if let Some((column, value)) = number.take() {
                    if value >= u32::from(self.vocab) {
                        return Err(PuzzleError::Integer { column, found: value, vocab: self.vocab });
                    }
                    if let Some(t) = out.get_mut(found) {
                        *t = value as u8;
                    }
                    found += 1;
                }
            } else {
                return Err(PuzzleError::Character { column: i + 1, found: c, expected: "decimal tokens, separated by commas or spaces" });
            }
        }
        self.count(found)
    }

    /// Reads one character a token: the character number `i` (from 0) of `alphabet` is token `i + 1`, so that 0 stays padding.
    ///
    /// ```
    /// let maze = hrm_core::task::Grid::new(4, 6).unwrap();
    /// let mut tokens = [0; 4];
    /// maze.parse_symbols("#S G", "# SGo", &mut tokens)?;
    /// assert_eq!(tokens, [1, 3, 2, 4]);
    /// # Ok::<(), hrm_core::task::PuzzleError>(())
    /// ```
    ///
    /// # Errors
    /// A character outside the alphabet or the vocabulary, another number of tokens, a short buffer; `tokens` is undefined then.
    pub fn parse_symbols(&self, text: &str, alphabet: &str, tokens: &mut [u8]) -> Result<(), PuzzleError> {
        let out = self.buffer(tokens)?;
        for (i, (c, t)) in text.chars().zip(out.iter_mut()).enumerate() {
            let index = alphabet.chars().position(|a| a == c).map(|p| p + 1).filter(|&p| p < usize::from(self.vocab));
            let expected = "a character of the task's alphabet";
            *t = index.ok_or(PuzzleError::Character { column: i + 1, found: c, expected })? as u8;
        }
        self.count(text.chars().count())
    }

    /// Checks the number and the range of tokens.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self, tokens: &[u8]) -> Result<(), PuzzleError> {
        self.count(tokens.len())?;
        match tokens.iter().position(|&t| u16::from(t) >= self.vocab) {
            None => Ok(()),
            Some(index) => Err(PuzzleError::Token { index, found: tokens[index], min: 0, max: (self.vocab - 1) as u8 }),
        }
    }

    /// Writes decimal tokens separated by single spaces; four bytes a token always suffice. Returns the text.
    ///
    /// # Errors
    /// Those of [`Grid::check`], a short buffer.
    pub fn format<'a>(&self, tokens: &[u8], text: &'a mut [u8]) -> Result<&'a str, PuzzleError> {
        self.check(tokens)?;
        let expected = tokens.iter().map(|&t| 2 + usize::from(t >= 10) + usize::from(t >= 100)).sum::<usize>() - 1;
        let found = text.len();
        let out = text.get_mut(..expected).ok_or(PuzzleError::Buffer { found, expected })?;
        let mut at = 0;
        for (i, &t) in tokens.iter().enumerate() {
            if i > 0 {
                out[at] = b' ';
                at += 1;
            }
            for unit in [100, 10, 1] {
                if t >= unit || unit == 1 {
                    out[at] = b'0' + t / unit % 10;
                    at += 1;
                }
            }
        }
        Ok(core::str::from_utf8(out).unwrap_or_default())
    }

    fn buffer<'a>(&self, tokens: &'a mut [u8]) -> Result<&'a mut [u8], PuzzleError> {
        let found = tokens.len();
        tokens.get_mut(..self.tokens()).ok_or(PuzzleError::Buffer { found, expected: self.tokens() })
    }

    const fn count(&self, found: usize) -> Result<(), PuzzleError> {
        if found == self.tokens() { Ok(()) } else { Err(PuzzleError::Tokens { found, expected: self.tokens() }) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn integers_round_trip() {
        let g = Grid::new(6, 256).unwrap();
        let mut t = [0; 6];
        g.parse_integers("0, 7 10\t99,100   255", &mut t).unwrap();
        assert_eq!(t, [0, 7, 10, 99, 100, 255]);
        let mut text = [0; 24];
        assert_eq!(g.format(&t, &mut text).unwrap(), "0 7 10 99 100 255");
        assert_eq!(g.format(&t, &mut text[..16]), Err(PuzzleError::Buffer { found: 16, expected: 17 }));
    }

    #[test]
    fn faults_are_named() {
        let g = Grid::new(3, 6).unwrap();
        let mut t = [0; 3];
        assert_eq!(g.parse_integers("1 2 6", &mut t).unwrap_err().to_string(), "column 5: found 6, expected a token from 0 to 5");
        assert_eq!(g.parse_integers("1 99999999999 3", &mut t), Err(PuzzleError::Integer { column: 3, found: u32::MAX, vocab: 6 }));
        assert!(g.parse_integers("1 -2 3", &mut t).unwrap_err().to_string().starts_with("column 3: found '-'"));
        assert_eq!(g.parse_integers("1 2", &mut t), Err(PuzzleError::Tokens { found: 2, expected: 3 }));
        assert_eq!(g.parse_integers("1 2 3 4", &mut t), Err(PuzzleError::Tokens { found: 4, expected: 3 }));
        assert_eq!(g.check(&[0, 6, 1]), Err(PuzzleError::Token { index: 1, found: 6, min: 0, max: 5 }));
        assert_eq!(g.parse_integers("1 2 3", &mut t[..2]), Err(PuzzleError::Buffer { found: 2, expected: 3 }));
        assert!(g.parse_symbols("#x#", "# SGo", &mut t).unwrap_err().to_string().starts_with("column 2: found 'x'"));
        assert_eq!(g.parse_symbols("####", "# SGo", &mut t), Err(PuzzleError::Tokens { found: 4, expected: 3 }));
        // The alphabet may be longer than the vocabulary, its tokens may not.
        assert!(Grid::new(1, 3).unwrap().parse_symbols("S", "# SGo", &mut t).is_err());
        assert!(Grid::new(0, 3).is_none() && Grid::new(1, 257).is_none());
    }
}
