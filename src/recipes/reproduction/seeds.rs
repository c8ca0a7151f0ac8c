//! A range of seeds, as the command line writes it.

use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// Seeds from a first to a last one, both included: `1..5` is five seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Seeds {
    first: u64,
    last: u64,
}

/// More seeds than anybody means.
const MOST: u64 = 10_000;

impl Seeds {
    /// The seeds from `first` to `last`, both included; just `first` where `last` is below it.
    pub const fn new(first: u64, last: u64) -> Seeds {
        Seeds { first, last: if last < first { first } else { last } }
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        self.first..=self.last
    }

    /// How many there are; at least 1.
    pub fn count(self) -> usize {
        (self.last - self.first) as usize + 1
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.last)
    }
}

impl TryFrom<String> for Seeds {
    type Error = String;

    fn try_from(text: String) -> Result<Seeds, String> {
        text.parse()
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seeds, String> {
        let number =
            |text: &str| text.trim().parse::<u64>().map_err(|_| format!("`{text}` is no seed"));
        let (first, last) = match text.split_once("..") {
            None => (number(text)?, number(text)?),
            Some((first, last)) => (number(first)?, number(last.trim_start_matches('='))?),
        };
        if last < first {
            return Err(format!("{first}..{last} has no seed: the last is below the first"));
        }
        if last - first >= MOST {
            return Err(format!("{first}..{last} are more than {MOST} seeds"));
        }
        Ok(Seeds { first, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_includes_both_ends() {
        let seeds: Seeds = "3..5".parse().unwrap();
        assert_eq!(seeds.iter().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!((seeds.count(), seeds.to_string()), (3, "3..5".to_string()));
        assert_eq!("3..=5".parse::<Seeds>().unwrap(), seeds);
        assert_eq!("7".parse::<Seeds>().unwrap(), Seeds::new(7, 7));
        for wrong in ["", "a..b", "5..3", "1..", "0..99999999", "-1..2"] {
            assert!(wrong.parse::<Seeds>().is_err(), "{wrong}");
        }
    }
}
