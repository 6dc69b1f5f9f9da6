//! The name of the lvol for a request: the request's own where it fits and is free, else one made from it.

use coppice_engine::{LvolInfo, LvolState, NAME_MAX};
use uuid::Uuid;

/// Longest name of a request, bytes (the standard's limit for strings).
const REQUEST_NAME_MAX: usize = 128;
/// How much of the request's name is kept when it does not fit: the rest is for `-` and eight digits of the UUID.
const KEPT_MAX: usize = NAME_MAX - 9;

/// Refuses names that no request may have.
pub fn check_request_name(name: &str, what: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("the request has no name for the {what}"));
    }
    if name.len() > REQUEST_NAME_MAX {
        return Err(format!("the name of the {what} has {} bytes; at most {REQUEST_NAME_MAX} are allowed", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("the name of the {what} contains control characters: {name:?}"));
    }
    Ok(())
}

/// The key under which requests of a name queue: those for volumes and those for snapshots, because their lvols share names.
pub fn name_key(request: &str) -> String {
    format!("the name {request:?}")
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// The name of the lvol `uuid` that is made for `request` in a lvstore with `lvols`.
pub fn lvol_name(request: &str, uuid: Uuid, lvstore: &str, lvols: &[LvolInfo]) -> String {
    let taken = |name: &str| {
        lvols.iter().any(|lvol| lvol.lvstore == lvstore && lvol.name == name && lvol.state != LvolState::Hidden)
    };
    // A name that looks like an id would make `lvol show` ambiguous.
    let fits = request.len() <= NAME_MAX && request.chars().all(is_plain) && Uuid::parse_str(request).is_err();
    if fits && !request.starts_with('.') && !taken(request) {
        return request.to_string();
    }
    let kept: String = request.chars().map(|c| if is_plain(c) { c } else { '_' }).take(KEPT_MAX).collect();
    let id = uuid.simple().to_string();
    let tail = id.get(..8).unwrap_or(&id);
    format!("{}-{tail}", kept.trim_start_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_odd_names_become_short_ones() {
        let id = Uuid::from_u128(0x1234_5678_0000_0000_0000_0000_0000_0000);
        assert_eq!(lvol_name("pvc-1", id, "s", &[]), "pvc-1");
        assert_eq!(lvol_name("a/b c", id, "s", &[]), "a_b_c-12345678");
        assert_eq!(lvol_name(&id.to_string(), id, "s", &[]), format!("{id}-12345678"));
        let long = "x".repeat(128);
        let name = lvol_name(&long, id, "s", &[]);
        assert_eq!(name.len(), NAME_MAX);
        assert!(name.ends_with("-12345678"));
        assert_eq!(lvol_name("ümlaut", id, "s", &[]), "_mlaut-12345678");
    }

    #[test]
    fn request_names() {
        assert!(check_request_name(&"x".repeat(128), "volume").is_ok());
        for bad in [String::new(), "x".repeat(129), "a\nb".into(), "a\0b".into()] {
            assert!(check_request_name(&bad, "volume").is_err(), "{bad:?}");
        }
    }
}
