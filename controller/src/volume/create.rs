//! Making a volume: empty, from a snapshot, or from a volume.
//!
//! The lvol and its attributes come into being in one transaction, so a retry finds either the whole volume or nothing.

use super::names::{check_request_name, lvol_name, name_key};
use super::{Error, Parameters, Pool, Range, Result, Source, Volume, Volumes, no_volume};
use coppice_engine::{CreateClone, CreateLvol, ErrorKind, LvolInfo, LvolKind, LvolState};
use coppice_proto::attributes::{self, Attributes};
use coppice_proto::capability::{Access, Capability, DEFAULT_FILE_SYSTEM, TOPOLOGY_NODE};
use std::collections::BTreeMap;
use tracing::{info, warn};
use uuid::Uuid;

/// Size of a volume for which no size is asked.
const DEFAULT_BYTES: u64 = 1 << 30;

/// A request for a volume.
#[derive(Clone, Debug, Default)]
pub struct CreateVolume {
    pub name: String,
    pub range: Range,
    pub capabilities: Vec<Capability>,
    pub parameters: Parameters,
    /// `namespace/name` of the claim, if the orchestrator says.
    pub claim: Option<String>,
    /// Kind and id of the source; the id is the caller's text.
    pub source: Option<SourceId>,
    /// Where the volume must be reachable: any of these; empty means anywhere.
    pub requisite: Vec<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceId {
    Snapshot(String),
    Volume(String),
}

impl CreateVolume {
    fn check(&self) -> Result<()> {
        check_request_name(&self.name, "volume").map_err(Error::Invalid)?;
        if self.capabilities.is_empty() {
            return Err(Error::Invalid("the request has no volume capabilities".into()));
        }
        match self.capabilities.iter().find_map(Capability::refusal) {
            Some(why) => Err(Error::Invalid(why)),
            None => Ok(()),
        }
    }

    /// The file system that the request names, if it is for a file system and names one.
    fn asked_fs(&self) -> Option<&str> {
        let named = self.capabilities.iter().find_map(|capability| match &capability.access {
            Access::Mount { fs_type, .. } if !fs_type.is_empty() => Some(fs_type.as_str()),
            _ => None,
        });
        named.or(self.parameters.fs_type.as_deref())
    }

    fn is_for_mount(&self) -> bool {
        self.capabilities.iter().any(|capability| matches!(capability.access, Access::Mount { .. }))
    }
}

impl Volumes {
    pub async fn create(&self, request: CreateVolume) -> Result<Volume> {
        request.check()?;
        let _turn = self.turns.take(&name_key(&request.name)).await?;
        let mut pools = self.backend.pools().await?;
        let mut lvols = self.backend.lvols().await?;
        if let Some(found) = named(&lvols, &request.name) {
            let pool = pools.iter().find(|pool| pool.key == found.lvstore);
            compatible(&request, found, pool)?;
            let misplaced = pool.is_some_and(|pool| !reachable(&request.requisite, &pool.node));
            if !misplaced || !self.backend.make_way(found.uuid).await? {
                return self.existing(&request, found).await;
            }
            pools = self.backend.pools().await?;
            lvols = self.backend.lvols().await?;
        }
        let made = match &request.source {
            None => self.create_empty(&request, &pools, &lvols).await,
            Some(SourceId::Snapshot(id)) => self.create_from_snapshot(&request, id, &pools, &lvols).await,
            Some(SourceId::Volume(id)) => self.create_from_volume(&request, id, &pools, &lvols).await,
        };
        match made {
            Ok((lvol, true)) => {
                info!(volume = %lvol.uuid, name = request.name, lvstore = lvol.lvstore, size = lvol.size, "created");
                self.volume_of(&lvol).await
            }
            // Somebody else was quicker.
            Ok((lvol, false)) => {
                let pool = pools.iter().find(|pool| pool.key == lvol.lvstore);
                compatible(&request, &lvol, pool)?;
                if pool.is_some_and(|pool| !reachable(&request.requisite, &pool.node)) {
                    let message = "the volume exists on a node that the topology asked for excludes: try again";
                    return Err(Error::MayExist(message.into()));
                }
                self.existing(&request, &lvol).await
            }
            Err(error) => Err(self.settled(&request.name, error).await),
        }
    }

    async fn existing(&self, request: &CreateVolume, found: &LvolInfo) -> Result<Volume> {
        info!(volume = %found.uuid, name = request.name, "the volume exists already");
        let made = self.backend.made(found.uuid).await;
        match made {
            Ok(lvol) => self.volume_of(&lvol).await,
            Err(error) => Err(self.settled(&request.name, error).await),
        }
    }

    /// A failed creation may only be called final when nothing of that name exists.
    async fn settled(&self, name: &str, error: Error) -> Error {
        if matches!(error, Error::MayExist(_) | Error::Deadline(_) | Error::Queue(_) | Error::NotYet(_)) {
            return error;
        }
        match self.backend.lvols().await {
            Ok(lvols) if named(&lvols, name).is_none() => error,
            Ok(_) => Error::MayExist(format!("{error}; the volume may exist all the same: try again")),
            Err(second) => Error::MayExist(format!("{error}; nothing more can be found out: {second}")),
        }
    }

    async fn create_empty(&self, request: &CreateVolume, pools: &[Pool], lvols: &[LvolInfo]) -> Result<Made> {
        let size = asked_size(request.range, 0)?;
        let mut candidates = candidates(request, pools)?;
        // The emptiest first.
        candidates.sort_by_key(|pool| (std::cmp::Reverse(pool.open), std::cmp::Reverse(emptiness(pool))));
        let mut tries = Tries::default();
        for pool in candidates {
            if !tries.is_worth_it(pool, size) {
                continue;
            }
            let uuid = Uuid::new_v4();
            let how = CreateLvol {
                name: lvol_name(&request.name, uuid, &pool.key, lvols),
                uuid: Some(uuid),
                size,
                thick: request.parameters.thick,
                attributes: volume_attributes(request, size, None, &Attributes::new()),
            };
            match self.backend.create(&pool.key, how).await {
                Ok(lvol) => {
                    let ours = lvol.uuid == uuid;
                    return Ok((lvol, ours));
                }
                Err(e) => tries.failed(pool, size, e)?,
            }
        }
        Err(tries.refusal)
    }

    async fn create_from_snapshot(
        &self,
        request: &CreateVolume,
        id: &str,
        pools: &[Pool],
        lvols: &[LvolInfo],
    ) -> Result<Made> {
        let no_snapshot = || Error::NotFound(format!("there is no snapshot {id:?} to make a volume from"));
        let found = self.find_snapshot(id).await?.ok_or_else(no_snapshot)?;
        let _turn = self.turns.take(&found.uuid.to_string()).await?;
        // Again, now that nobody can delete it.
        let snapshot = self.find_snapshot(id).await?.ok_or_else(no_snapshot)?;
        self.clone_of(request, Source::Snapshot(snapshot.uuid), &snapshot, pools, lvols).await
    }

    async fn create_from_volume(
        &self,
        request: &CreateVolume,
        id: &str,
        pools: &[Pool],
        lvols: &[LvolInfo],
    ) -> Result<Made> {
        let found = self.find_volume(id).await?.ok_or_else(|| no_volume(id))?;
        let _turn = self.turns.take(&found.uuid.to_string()).await?;
        let origin = self.find_volume(id).await?.ok_or_else(|| no_volume(id))?;
        self.clone_of(request, Source::Volume(origin.uuid), &origin, pools, lvols).await
    }

    /// Clones `origin`, which the caller named as the source: where it is, if that is allowed and has room, else elsewhere.
    async fn clone_of(
        &self,
        request: &CreateVolume,
        source: Source,
        origin: &LvolInfo,
        pools: &[Pool],
        lvols: &[LvolInfo],
    ) -> Result<Made> {
        let size = check_clone(request, origin)?;
        let mut tries = Tries::default();
        for pool in places_of_clone(request, origin, pools, self.backend.clones_elsewhere())? {
            if !tries.is_worth_it(pool, size) {
                continue;
            }
            let uuid = Uuid::new_v4();
            let how = CreateClone {
                snapshot: origin.uuid,
                name: lvol_name(&request.name, uuid, &pool.key, lvols),
                uuid: Some(uuid),
                size: Some(size.max(origin.size)),
                thick: request.parameters.thick,
                attributes: volume_attributes(request, size, Some(source), &origin.attributes),
            };
            let made = match pool.key == origin.lvstore {
                true => self.backend.clone_lvol(source, how).await,
                false => self.backend.clone_elsewhere(&pool.key, source, how).await,
            };
            match made {
                Ok(lvol) => {
                    let ours = lvol.uuid == uuid;
                    return Ok((lvol, ours));
                }
                Err(e) => tries.failed(pool, size, e)?,
            }
        }
        Err(tries.refusal)
    }
}

/// What one lvstore after the other has said.
struct Tries {
    /// The answer, if no other has room.
    refusal: Error,
    was_full: bool,
}

impl Default for Tries {
    fn default() -> Self {
        Tries { refusal: Error::NoSpace("there is no lvstore".into()), was_full: false }
    }
}

impl Tries {
    fn is_worth_it(&mut self, Pool { name, largest, open, .. }: &Pool, size: u64) -> bool {
        if !open {
            // That one is full is known, what one that is shut would say is not.
            return !self.was_full;
        }
        if size > *largest && matches!(self.refusal, Error::NoSpace(_)) {
            let message = format!("a volume of {size} bytes is larger than the lvstore {name} ({largest} bytes)");
            self.refusal = Error::OutOfRange(message);
        }
        size <= *largest
    }

    /// A full one is no reason to give up while another has room.
    fn failed(&mut self, pool: &Pool, size: u64, error: Error) -> Result<()> {
        match error {
            Error::Engine(e) if matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::NoMetadataSpace) => {
                warn!(lvstore = pool.name, size, "no room: {e}");
                self.refusal = Error::Engine(e);
                self.was_full = true;
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// A lvol, and whether it is the one that was asked for. If not, it was there already.
type Made = (LvolInfo, bool);

/// What is free, and what is promised to nobody: the less of both. Thin volumes take nothing at first, so free space alone
/// would put all of them in one place.
fn emptiness(pool: &Pool) -> i128 {
    i128::from(pool.free).min(i128::from(pool.largest) - i128::from(pool.committed))
}

/// What can be refused of a clone wherever it is made; answers with the size to report.
fn check_clone(request: &CreateVolume, origin: &LvolInfo) -> Result<u64> {
    let size = asked_size(request.range, attributes::reported_size(&origin.attributes, origin.size))?;
    if let (Some(asked), Some(there)) = (request.asked_fs(), origin.attributes.get(attributes::FS))
        && request.is_for_mount()
        && asked != there
    {
        let message = format!("the source holds {there}, the request is for {asked}: a copy keeps its file system");
        return Err(Error::Invalid(message));
    }
    Ok(size)
}

/// Where a clone may be made: with its source first, which is at once; then, if that is possible at all, the emptiest.
fn places_of_clone<'a>(
    request: &CreateVolume,
    origin: &LvolInfo,
    pools: &'a [Pool],
    elsewhere: bool,
) -> Result<Vec<&'a Pool>> {
    let home = pools.iter().find(|pool| pool.key == origin.lvstore);
    let home = home.ok_or_else(|| Error::MayExist("the lvstore of the source is not there now: try again".into()))?;
    if elsewhere {
        let mut places = candidates(request, pools)?;
        places.sort_by_key(|pool| {
            (pool.key != home.key, std::cmp::Reverse(pool.open), std::cmp::Reverse(emptiness(pool)))
        });
        return Ok(places);
    }
    let Pool { name, node, .. } = home;
    if let Some(lvstore) = request.parameters.lvstore.as_ref().filter(|asked| *asked != name) {
        let message =
            format!("the source is in the lvstore {name}, the class asks for {lvstore}: they must be the same");
        return Err(Error::Invalid(message));
    }
    if !reachable(&request.requisite, node) {
        return Err(Error::NoSpace(format!(
            "the source is in the lvstore {name} of the node {node}, which the topology asked for excludes"
        )));
    }
    Ok(vec![home])
}

/// The volume that the request `name` made, if it did.
fn named<'a>(lvols: &'a [LvolInfo], name: &str) -> Option<&'a LvolInfo> {
    lvols.iter().find(|lvol| {
        lvol.kind != LvolKind::Snapshot
            && lvol.state != LvolState::Hidden
            && lvol.attributes.get(attributes::CSI_NAME).is_some_and(|found| found == name)
    })
}

fn compatible(request: &CreateVolume, lvol: &LvolInfo, pool: Option<&Pool>) -> Result<()> {
    let differs = |what: String| Err(Error::Exists(format!("the volume {:?} exists with {what}", request.name)));
    let size = attributes::reported_size(&lvol.attributes, lvol.size);
    if !request.range.holds(size) {
        return differs(format!("{size} bytes, which is not what is asked for now"));
    }
    let source = lvol.attributes.get(attributes::CSI_SOURCE).and_then(|text| Source::from_attribute(text));
    let same_source = match (&request.source, source) {
        (None, None) => true,
        (Some(SourceId::Snapshot(id)), Some(Source::Snapshot(found))) => Uuid::parse_str(id) == Ok(found),
        (Some(SourceId::Volume(id)), Some(Source::Volume(found))) => Uuid::parse_str(id) == Ok(found),
        _ => false,
    };
    if !same_source {
        return differs("another source".into());
    }
    if request.parameters.thick == lvol.thin {
        return differs(format!("provisioning {}", if lvol.thin { "thin" } else { "thick" }));
    }
    if let (Some(lvstore), Some(pool)) = (&request.parameters.lvstore, pool)
        && *lvstore != pool.name
    {
        return differs(format!("lvstore {}, not {lvstore}", pool.name));
    }
    if let (Some(asked), Some(there)) = (request.asked_fs(), lvol.attributes.get(attributes::CSI_FSTYPE))
        && asked != there
    {
        return differs(format!("file system {there}, not {asked}"));
    }
    for (key, asked) in
        [(attributes::CSI_EXPORT, &request.parameters.export), (attributes::CSI_RESTORE, &request.parameters.restore)]
    {
        if lvol.attributes.get(key) != asked.as_ref() {
            return differs(format!("another parameter {}", key.trim_start_matches("coppice.csi.")));
        }
    }
    Ok(())
}

/// The size to report: the larger of what is asked and what the source has, within the limit.
fn asked_size(range: Range, source: u64) -> Result<u64> {
    let wanted = match (range.required, source) {
        (0, 0) if range.limit != 0 => DEFAULT_BYTES.min(range.limit),
        (0, 0) => DEFAULT_BYTES,
        (required, source) => required.max(source),
    };
    if range.limit != 0 && wanted > range.limit {
        let limit = range.limit;
        return Err(Error::OutOfRange(format!("the source has {wanted} bytes, the limit is {limit}: raise the limit")));
    }
    Ok(wanted)
}

/// The lvstores where the volume may be made.
pub(super) fn candidates<'a>(request: &CreateVolume, pools: &'a [Pool]) -> Result<Vec<&'a Pool>> {
    let wanted = request.parameters.lvstore.as_deref();
    let of_class: Vec<&Pool> = pools.iter().filter(|pool| wanted.is_none_or(|name| pool.name == name)).collect();
    if of_class.is_empty() {
        let known: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
        let wanted = wanted.unwrap_or("of any name");
        return Err(Error::Invalid(format!("there is no lvstore {wanted}; there are: {}", known.join(", "))));
    }
    let reachable: Vec<&Pool> = of_class.into_iter().filter(|pool| reachable(&request.requisite, &pool.node)).collect();
    if reachable.is_empty() {
        let message = "no lvstore of the class is on a node of the topology asked for";
        return Err(Error::NoSpace(message.into()));
    }
    Ok(reachable)
}

/// True if the node meets one of the places asked for.
pub(super) fn reachable(requisite: &[BTreeMap<String, String>], node: &str) -> bool {
    let meets = |place: &BTreeMap<String, String>| place.iter().all(|(k, v)| k == TOPOLOGY_NODE && v == node);
    requisite.is_empty() || requisite.iter().any(meets)
}

fn volume_attributes(request: &CreateVolume, size: u64, source: Option<Source>, parent: &Attributes) -> Attributes {
    let source = source.map(|source| source.to_attribute());
    let mut out = attributes::of_volume(&request.name, size, source, parent);
    if let Some(claim) = &request.claim {
        out.insert(attributes::CSI_PVC.into(), claim.clone());
    }
    if request.is_for_mount() {
        let held = parent.get(attributes::FS).map(String::as_str);
        let fs_type = request.asked_fs().or(held).unwrap_or(DEFAULT_FILE_SYSTEM);
        out.insert(attributes::CSI_FSTYPE.into(), fs_type.to_string());
    }
    for (key, value) in
        [(attributes::CSI_EXPORT, &request.parameters.export), (attributes::CSI_RESTORE, &request.parameters.restore)]
    {
        if let Some(value) = value {
            out.insert(key.into(), value.clone());
        }
    }
    out
}
