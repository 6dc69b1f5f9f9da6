//! Lists, a page at a time.
//!
//! Entries are ordered by id and a token names the last id of its page: a page that follows is right whatever was created
//! or deleted in between.

use super::snapshot::snapshot_from;
use super::{Error, Result, Snapshot, Volume, Volumes, is_seen, volume_from};
use coppice_engine::LvolKind;
use uuid::Uuid;

/// Entries, and the token for more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub entries: Vec<T>,
    /// Empty at the end.
    pub next_token: String,
}

/// Cuts the page after `token` out of `items`, which have ids.
fn page<T>(mut items: Vec<T>, id: impl Fn(&T) -> Uuid, max_entries: i32, token: &str) -> Result<Page<T>> {
    let max =
        usize::try_from(max_entries).map_err(|_| Error::Invalid(format!("max_entries is negative: {max_entries}")))?;
    items.sort_by_key(&id);
    if !token.is_empty() {
        let after = Uuid::parse_str(token)
            .map_err(|_| Error::BadToken(format!("starting_token {token:?} is not one of ours: start again")))?;
        items.retain(|item| id(item) > after);
    }
    let more = max != 0 && items.len() > max;
    if more {
        items.truncate(max);
    }
    let next_token = match items.last() {
        Some(last) if more => id(last).to_string(),
        _ => String::new(),
    };
    Ok(Page { entries: items, next_token })
}

impl Volumes {
    pub async fn list(&self, max_entries: i32, token: &str) -> Result<Page<Volume>> {
        let nodes = self.nodes().await?;
        let lvols = self.backend.lvols().await?;
        let volumes = lvols.iter().filter(|lvol| is_seen(lvol) && lvol.kind != LvolKind::Snapshot);
        page(volumes.map(|lvol| volume_from(lvol, &nodes)).collect(), |v| v.id, max_entries, token)
    }

    /// Snapshots; empty filters take all. Ids that name nothing give an empty list.
    pub async fn list_snapshots(
        &self,
        max_entries: i32,
        token: &str,
        snapshot_id: &str,
        volume_id: &str,
    ) -> Result<Page<Snapshot>> {
        let nodes = self.nodes().await?;
        let lvols = self.backend.lvols().await?;
        let wanted =
            |text: &str, found: &str| text.is_empty() || Uuid::parse_str(text).is_ok_and(|id| id.to_string() == found);
        let snapshots = lvols
            .iter()
            .filter(|lvol| is_seen(lvol) && lvol.kind == LvolKind::Snapshot)
            .map(|lvol| snapshot_from(lvol, &lvols, &nodes))
            .filter(|s| wanted(snapshot_id, &s.id.to_string()) && wanted(volume_id, &s.volume_id));
        page(snapshots.collect(), |s| s.id, max_entries, token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_whatever_is_deleted() -> Result<()> {
        let ids: Vec<Uuid> = (1..=5).rev().map(Uuid::from_u128).collect();
        let cut = |items: &[Uuid], max, token: &str| page(items.to_vec(), |id| *id, max, token);
        let all = cut(&ids, 0, "")?;
        assert_eq!((all.entries.len(), all.next_token.as_str()), (5, ""));
        let first = cut(&ids, 2, "")?;
        assert_eq!(first.entries, [1, 2].map(Uuid::from_u128));
        // The last entry of the page is deleted, and one before it appears.
        let later: Vec<Uuid> = [1, 3, 4, 5].map(Uuid::from_u128).to_vec();
        let second = cut(&later, 2, &first.next_token)?;
        assert_eq!(second.entries, [3, 4].map(Uuid::from_u128));
        let third = cut(&later, 2, &second.next_token)?;
        assert_eq!((third.entries, third.next_token.as_str()), (vec![Uuid::from_u128(5)], ""));
        assert!(matches!(cut(&ids, 2, "nonsense"), Err(Error::BadToken(_))));
        assert!(matches!(cut(&ids, -1, ""), Err(Error::Invalid(_))));
        Ok(())
    }
}
