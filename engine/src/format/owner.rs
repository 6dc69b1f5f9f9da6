//! Whose store it is: the UUID of the cluster of machines that uses it, in the reserved bytes of the super block.
//!
//! It has a place of its own, before the private area, and not in the private area's spare bytes: those are refused by
//! versions of ours that know of no owner, and these are kept by them and by SPDK. Zero: nobody's. A store that is sealed
//! keeps it, and is a plain SPDK store all the same.
//!
//! | off in super block | width | field |
//! |---:|---:|---|
//! | 3812 | 8 | magic `COPOWNER` |
//! | 3820 | 16 | UUID of the owner, never nil |

use super::bytes::{all_zero, array_at, put};
use super::error::FormatError;
use uuid::Uuid;

pub(super) const OWNER_AT: usize = 3812;
pub(super) const OWNER_LEN: usize = 24;
const MAGIC: &[u8; 8] = b"COPOWNER";

const _: () = assert!(OWNER_AT + OWNER_LEN == super::private::AREA_AT);

/// The owner in the area; bytes of somebody else there are an error, they must not be overwritten.
pub(super) fn parse(area: &[u8; OWNER_LEN]) -> Result<Option<Uuid>, FormatError> {
    if all_zero(area) {
        return Ok(None);
    }
    if &array_at::<8>(area, 0)? != MAGIC {
        return Err(FormatError::BadMagic { what: "owner in the super block" });
    }
    match Uuid::from_bytes(array_at(area, 8)?) {
        nil if nil.is_nil() => Err(FormatError::field("owner in the super block", 0u32, "it must not be nil")),
        owner => Ok(Some(owner)),
    }
}

pub(super) fn encode(owner: Option<Uuid>) -> Result<[u8; OWNER_LEN], FormatError> {
    let mut area = [0; OWNER_LEN];
    if let Some(owner) = owner {
        if owner.is_nil() {
            return Err(FormatError::field("owner in the super block", 0u32, "it must not be nil"));
        }
        put(&mut area, 0, MAGIC);
        put(&mut area, 8, owner.as_bytes());
    }
    Ok(area)
}
