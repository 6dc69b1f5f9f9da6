//! Our private area in the super block: where the system blob (journal, copy of the super block) lies.
//!
//! SPDK keeps the reserved bytes of the super block as they are, and takes new fields from their front; so ours sit at
//! the end, bytes 3836..4092:
//!
//! | off in super block | width | field |
//! |---:|---:|---|
//! | 3836 | 8 | magic `COPPICE1` |
//! | 3844 | 4 | state: 0 none, 1 creating, 2 in use |
//! | 3848 | 8 | generation of the super block; the second copy carries it too |
//! | 3856 | 16 | UUID of the lvstore |
//! | 3872 | 4 | number of extents, at most 24 |
//! | 3876 | 24 × 8 | extents: first cluster u32, clusters u32 |
//! | 4068 | 24 | zero |

use super::bytes::{all_zero, array_at, put, put_u32, put_u64, u32_at, u64_at};
use super::error::FormatError;

pub(super) const AREA_AT: usize = 3836;
pub(super) const AREA_LEN: usize = 256;
const MAGIC: &[u8; 8] = b"COPPICE1";
const EXTENTS_AT: usize = 40;
/// Most extents that the system blob may have.
pub const EXTENTS_MAX: usize = 24;
const TAIL_AT: usize = EXTENTS_AT + 8 * EXTENTS_MAX;

const _: () = assert!(AREA_AT + AREA_LEN == super::page::CRC_AT && TAIL_AT + 24 == AREA_LEN);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateState {
    /// No system blob; the generation may still matter.
    None = 0,
    /// The system blob is being made: what it holds is not valid yet.
    Creating = 1,
    /// The system blob is valid; a journal may have to be replayed.
    InUse = 2,
}

/// Consecutive clusters of the system blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateExtent {
    pub start_cluster: u32,
    pub clusters: u32,
}

impl PrivateExtent {
    fn end(self) -> u64 {
        u64::from(self.start_cluster) + u64::from(self.clusters)
    }
}

/// What the private area says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Private {
    pub state: PrivateState,
    pub generation: u64,
    pub store_uuid: [u8; 16],
    pub extents: Vec<PrivateExtent>,
}

impl Private {
    /// Reads the area. `None`: never used. Bytes of somebody else there are an error, they must not be overwritten.
    pub(super) fn parse(area: &[u8; AREA_LEN]) -> Result<Option<Private>, FormatError> {
        if all_zero(area) {
            return Ok(None);
        }
        if &array_at::<8>(area, 0)? != MAGIC {
            return Err(FormatError::BadMagic { what: "private area of the super block" });
        }
        let state = match u32_at(area, 8)? {
            0 => PrivateState::None,
            1 => PrivateState::Creating,
            2 => PrivateState::InUse,
            other => return Err(FormatError::field("state of the system blob", other, "0 to 2 are known")),
        };
        let count = u32_at(area, 36)?;
        if count as usize > EXTENTS_MAX {
            return Err(FormatError::field("extents of the system blob", count, "at most 24 are possible"));
        }
        let mut extents = Vec::with_capacity(count as usize);
        for n in 0..count as usize {
            let at = EXTENTS_AT + 8 * n;
            extents.push(PrivateExtent { start_cluster: u32_at(area, at)?, clusters: u32_at(area, at + 4)? });
        }
        if !all_zero(&area[EXTENTS_AT + 8 * extents.len()..]) {
            return Err(FormatError::field("private area of the super block", count, "bytes behind the last extent"));
        }
        let private = Private { state, generation: u64_at(area, 12)?, store_uuid: array_at(area, 20)?, extents };
        private.check()?;
        Ok(Some(private))
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.extents.len() > EXTENTS_MAX {
            let n = self.extents.len() as u64;
            return Err(FormatError::field("extents of the system blob", n, "at most 24 are possible"));
        }
        if self.state == PrivateState::InUse && self.extents.is_empty() {
            return Err(FormatError::field("extents of the system blob", 0u32, "it is in use and must have some"));
        }
        for (n, a) in self.extents.iter().enumerate() {
            if a.start_cluster == 0 || a.clusters == 0 || a.end() > u64::from(u32::MAX) {
                return Err(FormatError::field(
                    "extent of the system blob",
                    a.start_cluster,
                    "not a range of clusters",
                ));
            }
            let later = self.extents.iter().skip(n + 1);
            if later.into_iter().any(|b| a.end() > b.start_cluster.into() && b.end() > a.start_cluster.into()) {
                return Err(FormatError::field("extent of the system blob", a.start_cluster, "overlaps another one"));
            }
        }
        Ok(())
    }

    pub(super) fn encode(&self) -> Result<[u8; AREA_LEN], FormatError> {
        self.check()?;
        let mut area = [0; AREA_LEN];
        put(&mut area, 0, MAGIC);
        put_u32(&mut area, 8, self.state as u32);
        put_u64(&mut area, 12, self.generation);
        put(&mut area, 20, &self.store_uuid);
        put_u32(&mut area, 36, self.extents.len() as u32);
        for (n, extent) in self.extents.iter().enumerate() {
            put_u32(&mut area, EXTENTS_AT + 8 * n, extent.start_cluster);
            put_u32(&mut area, EXTENTS_AT + 8 * n + 4, extent.clusters);
        }
        Ok(area)
    }
}
