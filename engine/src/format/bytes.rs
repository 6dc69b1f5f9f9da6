//! Little-endian integers at byte offsets. Reads are checked and answer `Truncated`; writes go into pages that this
//! layer has just built, at constant offsets.

use super::error::FormatError;

/// `N` bytes at `at`.
pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], FormatError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().ok_or(FormatError::Truncated {
        what: "structure",
        need: at.saturating_add(N),
        have: bytes.len(),
    })
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, FormatError> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, FormatError> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Result<u64, FormatError> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

/// Copies `value` to `at`. The caller has made sure that it fits.
pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

pub(super) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_le_bytes());
}

/// True if nothing but zero bytes is in `bytes`.
pub(super) fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}
