//! Pins: the durable record, in a snapshot, that lvols of another lvstore read it.
//!
//! A pinned snapshot is never merged, and never removed: deletion hides it. The pin ends when somebody says so who knows
//! that nothing in that lvstore names the snapshot any more; never by itself.

use crate::api::{LvolInfo, Pin};
use crate::error::{Result, err};
use crate::shard::Shard;
use crate::shard::sync::lock;
use crate::sim::mutation::{Mutation, active};
use crate::store::Lvstore;
use crate::store::core::Core;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Lvstores that may depend on one snapshot.
const PINS_MAX: usize = 256;
/// Longest DNS name.
const READER_BYTES_MAX: usize = 253;

impl Lvstore {
    /// Durable when it returns. Pinned by the same again: fine, also when the snapshot was deleted meanwhile; it may name
    /// another reader.
    pub async fn pin(self: &Arc<Self>, shard: &Shard, snapshot: Uuid, pin: Pin) -> Result<LvolInfo> {
        if pin.reader.is_empty() || pin.reader.len() > READER_BYTES_MAX {
            return Err(err!(Invalid, "the reader of a pin is named with 1 to {READER_BYTES_MAX} bytes"));
        }
        self.activate(shard).await?;
        let change = |core: &mut Core| {
            let lid = core.lid_of(snapshot)?;
            let r = core.record(lid)?;
            let before = r.meta.pins().find(|(lvstore, _)| *lvstore == pin.lvstore).map(|(_, reader)| reader.to_vec());
            if before.as_deref() == Some(pin.reader.as_bytes()) {
                return Ok((lid, r.hot.dirty_batch.load(Ordering::Acquire)));
            }
            if !r.is_snapshot() {
                return Err(err!(WrongKind, "lvol {} is writable: only a snapshot can be pinned", r.name()));
            }
            if before.is_none() {
                // What is merged away is gone for new readers.
                if r.was_deleted() {
                    return Err(err!(NotFound, "snapshot {snapshot} was deleted"));
                }
                if r.meta.pins().count() >= PINS_MAX {
                    return Err(err!(Invalid, "snapshot {snapshot} has {PINS_MAX} pins: more are not possible"));
                }
            }
            let lid = core.idle(snapshot)?;
            core.update_meta(lid, |meta| {
                meta.set_pin(pin.lvstore, Some(&pin.reader));
                Ok(())
            })?;
            Ok((lid, core.open_batch))
        };
        let (lid, batch) = self.change(8, change).await?;
        if !active(Mutation::PinNotDurable) {
            self.durable(batch).await?;
        }
        self.describe(&lock(&self.core), lid)
    }

    /// Durable when it returns. No such pin, or no such snapshot: fine. A deleted snapshot goes when its last pin does.
    pub async fn unpin(self: &Arc<Self>, shard: &Shard, snapshot: Uuid, lvstore: Uuid) -> Result<()> {
        if lock(&self.core).lid_of(snapshot).is_err() {
            return Ok(());
        }
        self.activate(shard).await?;
        let change = |core: &mut Core| {
            let Ok(lid) = core.lid_of(snapshot) else { return Ok((None, core.durable_batch)) };
            let r = core.record(lid)?;
            if !r.meta.pins().any(|(pin, _)| pin == lvstore) {
                return Ok((Some(lid), r.hot.dirty_batch.load(Ordering::Acquire)));
            }
            r.intact()?;
            r.understood()?;
            core.update_meta(lid, |meta| {
                meta.set_pin(lvstore, None);
                Ok(())
            })?;
            Ok((Some(lid), core.open_batch))
        };
        let (lid, batch) = self.change(8, change).await?;
        self.durable(batch).await?;
        if let Some(lid) = lid {
            self.collapse(shard, lid);
        }
        Ok(())
    }
}
