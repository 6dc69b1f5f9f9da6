//! What a person may have meant who named something that is not there.

/// At most that many are offered.
const OFFERED_MAX: usize = 3;

/// `; near: a, b`, or nothing if none of `names` is near.
pub fn hint<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let far = wanted.chars().count().div_ceil(3).max(1);
    let mut near: Vec<(usize, &str)> = names
        .into_iter()
        .map(|name| (distance(wanted, name), name))
        .filter(|(away, name)| *away <= far || name.contains(wanted))
        .collect();
    near.sort_unstable();
    near.dedup();
    near.truncate(OFFERED_MAX);
    match near.is_empty() {
        true => String::new(),
        false => format!("; near: {}", near.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", ")),
    }
}

/// Letters to put in, take out or change, to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (n, c) in one.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], n + 1);
        for (m, d) in other.iter().enumerate() {
            let changed = before + usize::from(c != *d);
            before = row[m + 1];
            row[m + 1] = changed.min(before + 1).min(row[m] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (one, other, away) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("data", "date", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(one, other), away, "{one} {other}");
            assert_eq!(distance(other, one), away, "{other} {one}");
        }
    }

    #[test]
    fn what_is_offered() {
        let names = ["data", "data-copy", "logs", "date"];
        assert_eq!(hint("dat", names), "; near: data, date, data-copy");
        assert_eq!(hint("queue", names), "");
    }
}
