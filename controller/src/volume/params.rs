//! What a request asks for, validated: parameters of a class, sizes, sources.

use super::{Consistency, Error, Result};
use coppice_proto::capability::check_file_system;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Keys below this belong to the orchestrator; they are accepted and do not count as a difference between requests.
const ORCHESTRATOR_PREFIX: &str = "csi.storage.k8s.io/";
const FSTYPE_KEY: &str = "csi.storage.k8s.io/fstype";

/// The parameters of a StorageClass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    pub lvstore: Option<String>,
    pub thick: bool,
    pub fs_type: Option<String>,
    /// `lazy` or `eager`, if given.
    pub restore: Option<String>,
    /// `auto`, `ublk`, `nbd` or `fuse`, if given.
    pub export: Option<String>,
}

fn one_of(key: &str, value: &str, allowed: &[&str]) -> Result<String> {
    match allowed.contains(&value) {
        true => Ok(value.to_string()),
        false => Err(Error::Invalid(format!("parameter {key}: {value:?} is not one of {}", allowed.join(", ")))),
    }
}

impl Parameters {
    pub fn read<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<Parameters> {
        let mut out = Parameters::default();
        for (key, value) in map {
            match key.as_str() {
                "lvstore" => {
                    if value.is_empty() {
                        return Err(Error::Invalid("parameter lvstore: the name is empty".into()));
                    }
                    out.lvstore = Some(value.clone());
                }
                "provisioning" => out.thick = one_of(key, value, &["thin", "thick"])? == "thick",
                "restore" => out.restore = Some(one_of(key, value, &["lazy", "eager"])?),
                "export" => {
                    let export = one_of(key, value, &["auto", "ublk", "nbd", "fuse"])?;
                    if matches!(export.as_str(), "ublk" | "nbd") {
                        let message = format!("parameter export: {export:?} is not built in yet; use auto or fuse");
                        return Err(Error::Invalid(message));
                    }
                    out.export = Some(export);
                }
                FSTYPE_KEY => {
                    check_file_system(value).map_err(|e| Error::Invalid(format!("parameter {key}: {e}")))?;
                    out.fs_type = Some(value.clone());
                }
                other if other.starts_with(ORCHESTRATOR_PREFIX) => {}
                other => {
                    let known = "lvstore, provisioning, restore, export, csi.storage.k8s.io/fstype";
                    return Err(Error::Invalid(format!("parameter {other:?} is not known; known are {known}")));
                }
            }
        }
        Ok(out)
    }
}

/// `namespace/name` of the object that the request is for, if the orchestrator says: `kind` is `pvc` or `volumesnapshot`.
pub fn owner(map: &BTreeMap<String, String>, kind: &str) -> Option<String> {
    let part = |part: &str| map.get(&format!("{ORCHESTRATOR_PREFIX}{kind}/{part}")).filter(|value| !value.is_empty());
    Some(format!("{}/{}", part("namespace")?, part("name")?))
}

/// The parameters of a VolumeSnapshotClass.
pub fn check_snapshot_parameters(map: &BTreeMap<String, String>) -> Result<Consistency> {
    let mut out = Consistency::default();
    for (key, value) in map {
        match key.as_str() {
            "consistency" => {
                out = match value.as_str() {
                    "crash" => Consistency::Crash,
                    "sync" => Consistency::Sync,
                    "freeze" => Consistency::Freeze,
                    _ => {
                        let message = format!("parameter consistency: {value:?} is not one of crash, sync, freeze");
                        return Err(Error::Invalid(message));
                    }
                }
            }
            other if other.starts_with(ORCHESTRATOR_PREFIX) => {}
            other => return Err(Error::Invalid(format!("parameter {other:?} is not known; known is consistency"))),
        }
    }
    Ok(out)
}

/// Bytes wanted; zero means not specified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub required: u64,
    pub limit: u64,
}

impl Range {
    pub fn read(required: i64, limit: i64) -> Result<Range> {
        let read = |what: &str, value: i64| {
            u64::try_from(value).map_err(|_| Error::Invalid(format!("capacity_range: {what} is negative: {value}")))
        };
        let range = Range { required: read("required_bytes", required)?, limit: read("limit_bytes", limit)? };
        if range.limit != 0 && range.limit < range.required {
            let Range { required, limit } = range;
            let message = format!("capacity_range: limit_bytes {limit} is below required_bytes {required}");
            return Err(Error::Invalid(message));
        }
        Ok(range)
    }

    /// True if a volume of `size` bytes is what the range asks for.
    pub fn holds(&self, size: u64) -> bool {
        size >= self.required && (self.limit == 0 || size <= self.limit)
    }
}

/// What a volume was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Snapshot(Uuid),
    Volume(Uuid),
}

impl Source {
    pub fn to_attribute(self) -> String {
        match self {
            Source::Snapshot(id) => format!("snapshot:{id}"),
            Source::Volume(id) => format!("volume:{id}"),
        }
    }

    pub fn from_attribute(text: &str) -> Option<Source> {
        let (kind, id) = text.split_once(':')?;
        let id = Uuid::parse_str(id).ok()?;
        match kind {
            "snapshot" => Some(Source::Snapshot(id)),
            "volume" => Some(Source::Volume(id)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Parameters> {
        let map: BTreeMap<String, String> = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Parameters::read(&map)
    }

    #[test]
    fn parameters_of_a_class() -> Result<()> {
        let all = read(&[
            ("lvstore", "fast"),
            ("provisioning", "thick"),
            ("restore", "eager"),
            ("export", "fuse"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("csi.storage.k8s.io/pvc/name", "whatever"),
        ])?;
        assert_eq!(all.lvstore.as_deref(), Some("fast"));
        assert!(all.thick);
        assert_eq!(all.fs_type.as_deref(), Some("xfs"));
        assert_eq!(read(&[])?, Parameters::default());
        for bad in [
            ("lvstore", ""),
            ("provisioning", "Thick"),
            ("provisioning", ""),
            ("restore", "now"),
            ("export", "iscsi"),
            ("export", "ublk"),
            ("csi.storage.k8s.io/fstype", "ntfs"),
            ("csi.storage.k8s.io/fstype", ""),
            ("fstype", "ext4"),
            ("Lvstore", "x"),
            ("", ""),
        ] {
            assert!(matches!(read(&[bad]), Err(Error::Invalid(_))), "{bad:?}");
        }
        Ok(())
    }

    #[test]
    fn ranges() -> Result<()> {
        for (required, limit) in [(-1, 0), (0, -1), (10, 5)] {
            assert!(matches!(Range::read(required, limit), Err(Error::Invalid(_))), "{required} {limit}");
        }
        let range = Range::read(5, 10)?;
        assert_eq!([4, 5, 10, 11].map(|size| range.holds(size)), [false, true, true, false]);
        assert!(Range::read(5, 0)?.holds(u64::MAX));
        Ok(())
    }

    #[test]
    fn sources_keep_their_meaning() {
        let id = Uuid::from_u128(7);
        for source in [Source::Snapshot(id), Source::Volume(id)] {
            assert_eq!(Source::from_attribute(&source.to_attribute()), Some(source));
        }
        for bad in ["", "snapshot", "snapshot:x", &format!("disk:{id}")] {
            assert_eq!(Source::from_attribute(bad), None, "{bad}");
        }
    }
}
