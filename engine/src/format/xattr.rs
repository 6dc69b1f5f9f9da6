//! Extended attributes of a blob, and the names that mean something.

/// User xattr: name of a lvol or of the lvstore, NUL-terminated, at most 64 bytes with the NUL.
pub const NAME: &[u8] = b"name";
/// User xattr: UUID as 36 characters and a NUL.
pub const UUID: &[u8] = b"uuid";
/// Internal xattr: id of the snapshot that this blob is a clone of, 8 bytes.
pub const SNAP: &[u8] = b"SNAP";
/// Internal xattr: identity of the parent outside of this store.
pub const EXTSNAP: &[u8] = b"EXTSNAP";
/// Internal xattr, written by SPDK only: on a snapshot while it is being created, id of its origin.
pub const SNAPTMP: &[u8] = b"SNAPTMP";
/// Internal xattr, written by SPDK only: on a snapshot while it is merged away, id of its clone.
pub const SNAPRM: &[u8] = b"SNAPRM";
/// Internal xattr of ours, beside `EXTSNAP`: how many bytes of the external parent show, and how many it has, as two decimal
/// numbers with a space between. The second may be missing; without either (a lvol that SPDK made) the lvol's size shows.
pub const VISIBLE: &[u8] = b"coppice.visible";
/// Internal xattr of ours, beside `EXTSNAP`: the lvol is to be hydrated. Two decimal numbers with a space between: clusters
/// that are set aside for what is still to be copied, and how many there were in the beginning.
pub const HYDRATE: &[u8] = b"coppice.hydrate";
/// How the name of an internal xattr of ours begins that pins a snapshot; the UUID of the lvstore that depends on it follows.
/// The value is the name (of a node) under which the snapshot may be read from there.
pub const PIN_PREFIX: &[u8] = b"coppice.pin.";

/// Room for a name on disk, with its NUL.
pub const NAME_FIELD: usize = 64;
/// Length of the `uuid` value.
pub const UUID_FIELD: usize = 37;
/// Bytes that an xattr descriptor takes besides name and value.
pub const OVERHEAD: usize = 9;

/// One extended attribute. User and internal ones are two name spaces.
#[derive(Clone, PartialEq, Eq)]
pub struct Xattr {
    pub internal: bool,
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

impl Xattr {
    /// Bytes that the attribute takes in a page.
    pub(super) fn descriptor_len(&self) -> usize {
        OVERHEAD.saturating_add(self.name.len()).saturating_add(self.value.len())
    }
}

impl std::fmt::Debug for Xattr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.internal { "internal" } else { "user" };
        write!(f, "{kind} \"{}\" = \"{}\"", self.name.escape_ascii(), self.value.escape_ascii())
    }
}
