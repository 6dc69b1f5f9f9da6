//! Sizes as people write and read them. Units are powers of 1024, whatever their spelling.

const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// Bytes in `4096`, `64K`, `64M`, `1Gi`, `10GiB`, `1.5G`.
pub fn parse(text: &str) -> Result<u64, String> {
    let bad = |why: &str| format!("{why}; write bytes, or a number with K, M, G, T (powers of 1024), as 64M or 1.5G");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.contains('.') {
        return Err(bad("not a size"));
    }
    let factor = factor(unit).ok_or_else(|| bad(&format!("the unit {unit:?} is unknown")))?;
    let too_large = || format!("too large; at most {} bytes are possible", u64::MAX);
    // Nine digits behind the point are more than any unit can use here.
    if fraction.len() > 9 {
        return Err(bad("too many digits behind the point"));
    }
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let scale = 10u128.pow(fraction.len() as u32);
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| bad("not a size"))? };
    let product = (u128::from(whole) * scale + part).checked_mul(factor).ok_or_else(too_large)?;
    if !product.is_multiple_of(scale) {
        return Err(bad("not a whole number of bytes"));
    }
    u64::try_from(product / scale).map_err(|_| too_large())
}

/// Bytes of `K`, `KB`, `Ki`, `KiB`, … in any case; 1 for nothing and `B`.
fn factor(unit: &str) -> Option<u128> {
    let upper = unit.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Some(1);
    }
    let mut rest = upper.chars();
    let first = rest.next()?;
    let exponent = UNITS.iter().position(|u| *u == first)? + 1;
    ["", "B", "I", "IB"].contains(&rest.as_str()).then(|| 1u128 << (10 * exponent))
}

/// A cluster size: as `parse`, below 4 GiB.
pub fn parse_u32(text: &str) -> Result<u32, String> {
    u32::try_from(parse(text)?).map_err(|_| "too large".to_string())
}

/// `10.0 GiB`, `512 B`.
pub fn human(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let bytes = u128::from(bytes);
    for (n, unit) in UNITS.iter().enumerate() {
        let one = 1u128 << (10 * (n + 1));
        let tenths = (bytes * 10 + one / 2) / one;
        // 1023.96 KiB is read as 1.0 MiB.
        if tenths < 10240 || n + 1 == UNITS.len() {
            return format!("{}.{} {unit}iB", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64KB", 64 << 10),
            ("64M", 64 << 20),
            ("1Gi", 1 << 30),
            ("10GiB", 10 << 30),
            ("10gib", 10 << 30),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("1.000G", 1 << 30),
            ("2T", 2 << 40),
            ("1P", 1 << 50),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        let bad = [
            "",
            " ",
            "G",
            ".5G",
            "1.G",
            "1..5G",
            "1.5.G",
            "-1",
            "+1",
            "1 G",
            "1X",
            "1Gx",
            "1GiBB",
            "1iB",
            "0.1K",
            "16E",
            "18446744073709551616",
            "99999999999999999999999999",
            "1.0000000001G",
            "1e9",
            "0x10",
            "１G",
            "1G\n",
        ];
        for text in bad {
            assert!(parse(text).is_err(), "{text:?} gave {:?}", parse(text));
        }
        assert!(parse("1X").unwrap_err().contains("64M"), "says what to write");
        assert!(parse_u32("4G").is_err());
        assert_eq!(parse_u32("64K"), Ok(65536));
    }

    #[test]
    fn what_people_read() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (65536, "64.0 KiB"),
            (10 << 30, "10.0 GiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }
}
