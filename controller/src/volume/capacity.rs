//! How much room there is.

use super::create::{CreateVolume, candidates};
use super::{Error, Parameters, Result, Volumes};
use std::collections::BTreeMap;

/// Bytes left where a class of volumes may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub available: u64,
    /// The largest volume that should be placed there now. A thin one may be larger, up to the size of its lvstore, but
    /// a scheduler that believed so would fill the drive.
    pub largest_volume: u64,
    /// Bytes of one cluster: less cannot be taken.
    pub smallest_volume: u64,
}

impl Volumes {
    /// Nothing is available where there is no lvstore; that is no error.
    pub async fn capacity(&self, parameters: Parameters, place: Option<BTreeMap<String, String>>) -> Result<Capacity> {
        let pools = self.backend.pools().await?;
        let request = CreateVolume { parameters, requisite: place.into_iter().collect(), ..CreateVolume::default() };
        let usable = match candidates(&request, &pools) {
            Ok(usable) => usable,
            Err(Error::NoSpace(_) | Error::Invalid(_)) => return Ok(Capacity::default()),
            Err(e) => return Err(e),
        };
        let writable = || usable.iter().filter(|pool| pool.open);
        Ok(Capacity {
            available: writable().map(|pool| pool.free).fold(0, u64::saturating_add),
            largest_volume: writable().map(|pool| pool.free).max().unwrap_or(0),
            smallest_volume: writable().map(|pool| pool.cluster_size).min().unwrap_or(0),
        })
    }
}
