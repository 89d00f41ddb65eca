//! Sizes as people write them: `4096`, `64KiB`, `1.5 GiB`, `10MB`.
//!
//! As in coreutils: `K`, `M`, `G`, `T` and `KiB`, `MiB`, .. are powers of 1024, `KB`, `MB`, .. are powers of 1000.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number in front.
    #[error("{0:?} is not a size; write a number of bytes, or one with a unit: 4096, 64KiB, 1.5G, 10MB")]
    Number(String),
    /// An unknown unit behind.
    #[error("{unit:?} in {text:?} is not a unit; use K, M, G, T (1024), KiB.. (the same), or KB.. (1000)")]
    Unit {
        /// The whole text.
        text: String,
        /// The unit.
        unit: String,
    },
    /// More than 64 bits, or a fraction of a byte.
    #[error("{0:?} is not a whole number of bytes below 2^64")]
    Range(String),
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let factor = factor(unit.trim_start())
            .ok_or_else(|| SizeError::Unit { text: text.to_owned(), unit: unit.trim().to_owned() });
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || fraction.len() > 15 {
            return Err(SizeError::Number(text.to_owned()));
        }
        let factor = u128::from(factor?);
        let range = || SizeError::Range(text.to_owned());
        let whole: u128 = whole.parse::<u64>().map_err(|_| range())?.into();
        let scale = 10_u128.pow(u32::try_from(fraction.len()).expect("at most 15"));
        let parts = fraction.parse::<u128>().map_err(|_| range())? * factor;
        if !parts.is_multiple_of(scale) {
            return Err(range());
        }
        u64::try_from(whole * factor + parts / scale).map(Size).map_err(|_| range())
    }
}

fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if matches!(unit.as_str(), "" | "b") {
        return Some(1);
    }
    let power = 1 + u32::try_from("kmgtpe".find(unit.chars().next()?)?).ok()?;
    match &unit[1..] {
        "" | "ib" => Some(1024_u64.pow(power)),
        "b" => Some(1000_u64.pow(power)),
        _ => None,
    }
}

/// Exact: what it prints parses to the same size.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["TiB", "GiB", "MiB", "KiB"];
        for (index, unit) in units.iter().enumerate() {
            let bytes = 1_u64 << (10 * (units.len() - index));
            if self.0 >= bytes && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 / bytes);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 4096 or \"64KiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// For people: three digits and a unit, such as "1.50 GiB".
#[must_use]
pub fn rough(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_coreutils_read_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4KB", 4000),
            (" 64 MiB ", 64 << 20),
            ("1.5G", 3 << 29),
            ("0.5KB", 500),
            ("2T", 2 << 40),
            ("15E", 15 << 60),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_reason() {
        for (text, says) in [
            ("", "is not a size"),
            ("M", "is not a size"),
            ("-1", "is not a size"),
            ("1.", "is not a size"),
            ("1.2.3K", "is not a size"),
            ("1X", "is not a unit"),
            ("1Kb1", "is not a unit"),
            ("0.5", "is not a whole number"),
            ("16E", "below 2^64"),
            ("99999999999999999999", "below 2^64"),
        ] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_size_prints_as_what_parses_to_itself() {
        for bytes in [0, 1, 1023, 1024, 1025, 4 << 20, 3 << 30, (1 << 40) + 1, u64::MAX] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
    }

    #[test]
    fn rough_sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (15 << 19, "7.50 MiB"),
            (256 << 20, "256 MiB"),
            (1 << 30, "1.00 GiB"),
            (25 << 30, "25.0 GiB"),
        ] {
            assert_eq!(rough(bytes), text);
        }
    }
}
