//! Amounts of bytes as Kubernetes writes them: `10Gi`.
//!
//! Only whole numbers, so that a size survives being read and written; only what fits 63 bits, so that CEL and Rust agree.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Without zero, for what must have a size.
pub(crate) const POSITIVE: &str =
    "^([1-9][0-9]{0,17}|[1-9][0-9]{0,14}(k|Ki)|[1-9][0-9]{0,11}(M|Mi)|[1-9][0-9]{0,8}(G|Gi)|[1-9][0-9]{0,5}(T|Ti))$";
/// Each unit takes as many digits as stay below 2^63 bytes.
pub(crate) const PATTERN: &str =
    "^(0|[1-9][0-9]{0,17}|[1-9][0-9]{0,14}(k|Ki)|[1-9][0-9]{0,11}(M|Mi)|[1-9][0-9]{0,8}(G|Gi)|[1-9][0-9]{0,5}(T|Ti))$";

/// Characters.
pub(crate) const LENGTH_MAX: usize = 18;

/// Units and the digits that may stand before them; the ones we write first, the largest first.
const UNITS: [(&str, u64, usize); 9] = [
    ("Ti", 1 << 40, 6),
    ("Gi", 1 << 30, 9),
    ("Mi", 1 << 20, 12),
    ("Ki", 1 << 10, 15),
    ("", 1, 18),
    ("T", 1_000_000_000_000, 6),
    ("G", 1_000_000_000, 9),
    ("M", 1_000_000, 12),
    ("k", 1_000, 15),
];

/// An amount of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a size: a whole number of bytes, or with Ki, Mi, Gi, Ti, k, M, G, T")]
pub struct SizeError(String);

impl ByteSize {
    /// More than any drive has: an exabyte less one byte.
    pub const MAX: ByteSize = ByteSize(999_999_999_999_999_999);

    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl From<u64> for ByteSize {
    /// What is beyond [`ByteSize::MAX`] becomes that.
    fn from(bytes: u64) -> ByteSize {
        ByteSize(bytes).min(ByteSize::MAX)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that says it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().find(|(_, unit, _)| self.0 != 0 && self.0.is_multiple_of(*unit));
        match exact {
            Some((name, unit, _)) => write!(f, "{}{name}", self.0 / unit),
            None => f.write_str("0"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<ByteSize, SizeError> {
        let refused = || SizeError(text.to_string());
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let (_, unit, digits_max) = UNITS.iter().find(|(name, ..)| *name == unit).ok_or_else(refused)?;
        if digits == "0" && *unit == 1 {
            return Ok(ByteSize(0));
        }
        if digits.starts_with('0') || digits.len() > *digits_max {
            return Err(refused());
        }
        let number: u64 = digits.parse().map_err(|_| refused())?;
        number.checked_mul(*unit).map(ByteSize).ok_or_else(refused)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": LENGTH_MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_the_largest_exact_unit() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1000, "1000"),
            (1024, "1Ki"),
            (65536, "64Ki"),
            (1536 << 20, "1536Mi"),
            (1 << 50, "1024Ti"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!("5G".parse(), Ok(ByteSize(5_000_000_000)));
        assert_eq!("5k".parse(), Ok(ByteSize(5_000)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in [
            "",
            "Gi",
            "01",
            "0Gi",
            "-1",
            "+1",
            "1.5Gi",
            "1e3",
            "1gi",
            "1 Gi",
            "1K",
            "1Pi",
            "9999999Ti",
            "1000000000000000000",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn whatever_we_write_is_read_again() {
        let mut bytes = 1_u64;
        while bytes < u64::MAX / 7 {
            for near in [bytes - 1, bytes, bytes + 1, bytes * 3] {
                let size = ByteSize::from(near);
                assert_eq!(size.to_string().parse(), Ok(size), "{near}");
            }
            bytes *= 2;
        }
        assert_eq!(ByteSize::from(u64::MAX), ByteSize::MAX);
        assert_eq!(ByteSize::MAX.to_string().parse(), Ok(ByteSize::MAX));
    }
}
