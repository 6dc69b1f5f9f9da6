//! The Admin service. It resolves names, calls the engine, and translates.

use super::resolve;
use crate::remote::Near;
use coppice_engine::{
    CreateClone, CreateExternalClone, CreateLvol, CreateSnapshot, LvolInfo, LvolState, Progress, Store, Stores,
};
use coppice_nbd::server::Server;
use coppice_proto::admin::v1::admin_client::AdminClient;
use coppice_proto::admin::v1::admin_server::{Admin, AdminServer};
use coppice_proto::admin::v1::*;
use coppice_proto::attributes;
use coppice_proto::status::from_engine;
use coppice_proto::unix::MESSAGE_BYTES_MAX;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;
use uuid::Uuid;

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = ReceiverStream<Result<T, Status>>;

/// Bytes of one message of `ReadLvol`.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Clone)]
pub struct AdminService {
    stores: Stores,
    /// Where exports are mounted.
    exports: PathBuf,
    /// What other nodes are served by.
    served: Option<Arc<Server>>,
    near: Near,
}

/// Work that takes its time.
#[derive(Clone, Copy)]
enum Work {
    Inflate,
    Decouple,
    Hydrate,
}

impl AdminService {
    pub fn new(stores: Stores, exports: PathBuf) -> Self {
        AdminService { stores, exports, served: None, near: Near::default() }
    }

    /// Whose pin is taken away, loses its connections to this server, too.
    pub fn serving(self, served: Arc<Server>) -> Self {
        AdminService { served: Some(served), ..self }
    }

    /// Who makes clones across the lvstores of this process.
    pub fn near(&self) -> &Near {
        &self.near
    }

    /// The service, ready to be served.
    pub fn into_server(self) -> AdminServer<AdminService> {
        AdminServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn lvol(&self, name: &str) -> Result<(Store, LvolInfo), Status> {
        resolve::lvol(&self.stores.all(), name).await
    }

    fn long_work(&self, store: &Store, lvol: LvolInfo, work: Work) -> Stream<WorkUpdate> {
        let (sender, receiver) = mpsc::channel(16);
        let store = store.clone();
        tokio::spawn(async move {
            let updates = sender.clone();
            let progress = Box::new(move |progress: Progress| {
                let Progress { done, total } = progress;
                let update = work_update::Update::Progress(WorkProgress { done, total });
                // A reader that is behind misses an update; one that is gone cancels.
                let _ = updates.try_send(Ok(WorkUpdate { update: Some(update) }));
                !updates.is_closed()
            });
            let done = match work {
                Work::Decouple => store.decouple(lvol.uuid, progress).await,
                Work::Inflate => store.inflate(lvol.uuid, progress).await,
                Work::Hydrate => store.hydrate(lvol.uuid, progress).await,
            };
            let last = done.map_err(|e| from_engine(&e)).map(|lvol| {
                let update = Some(work_update::Update::Finished(lvol.into()));
                WorkUpdate { update }
            });
            let _ = sender.send(last).await;
        });
        ReceiverStream::new(receiver)
    }
}

/// The service at the far end of a pipe in this process, for a store that no server has open.
pub async fn serve_in_memory(service: AdminService) -> Result<AdminClient<Channel>, tonic::transport::Error> {
    let (near, far) = tokio::io::duplex(4 << 20);
    tokio::spawn(async move {
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far));
        tonic::transport::Server::builder().add_service(service.into_server()).serve_with_incoming(incoming).await
    });
    Ok(client(coppice_proto::unix::over(near).await?))
}

/// A client that takes long lists.
pub fn client(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn uuid_of(text: &str) -> Result<Uuid, Status> {
    Uuid::parse_str(text).map_err(|e| Status::invalid_argument(format!("{text:?} is no UUID: {e}")))
}

fn answer<T, U: From<T>>(done: coppice_engine::Result<T>) -> Answer<U> {
    done.map(|value| Response::new(value.into())).map_err(|e| from_engine(&e))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn list_stores(&self, _: Request<ListStoresRequest>) -> Answer<ListStoresResponse> {
        let mut stores = Vec::new();
        for store in self.stores.all().iter() {
            stores.push(store.info().await.map_err(|e| from_engine(&e))?.into());
        }
        Ok(Response::new(ListStoresResponse { stores }))
    }

    async fn get_store(&self, request: Request<StoreRequest>) -> Answer<coppice_proto::admin::v1::Store> {
        answer(resolve::store(&self.stores.all(), &request.into_inner().store)?.info().await)
    }

    async fn check_store(&self, request: Request<StoreRequest>) -> Answer<CheckStoreResponse> {
        let store = resolve::store(&self.stores.all(), &request.into_inner().store)?;
        let findings = store.check().await.map_err(|e| from_engine(&e))?;
        Ok(Response::new(CheckStoreResponse { findings: findings.into_iter().map(Into::into).collect() }))
    }

    async fn seal_store(&self, request: Request<StoreRequest>) -> Answer<coppice_proto::admin::v1::Store> {
        let store = resolve::store(&self.stores.all(), &request.into_inner().store)?;
        store.seal().await.map_err(|e| from_engine(&e))?;
        answer(store.info().await)
    }

    async fn grow_store(&self, request: Request<StoreRequest>) -> Answer<coppice_proto::admin::v1::Store> {
        answer(resolve::store(&self.stores.all(), &request.into_inner().store)?.grow().await)
    }

    async fn list_lvols(&self, request: Request<ListLvolsRequest>) -> Answer<ListLvolsResponse> {
        let request = request.into_inner();
        let mut stores = self.stores.all();
        if !request.store.is_empty() {
            stores = [resolve::store(&stores, &request.store)?].into();
        }
        let mut lvols = Vec::new();
        for store in stores.iter() {
            let all = store.lvols().await.map_err(|e| from_engine(&e))?;
            lvols.extend(all.into_iter().filter(|l| request.hidden || l.state != LvolState::Hidden).map(Lvol::from));
        }
        Ok(Response::new(ListLvolsResponse { lvols }))
    }

    async fn get_lvol(&self, request: Request<LvolRequest>) -> Answer<Lvol> {
        let (_, lvol) = self.lvol(&request.into_inner().lvol).await?;
        Ok(Response::new(lvol.into()))
    }

    async fn create_lvol(&self, request: Request<CreateLvolRequest>) -> Answer<Lvol> {
        let request = request.into_inner();
        let store = resolve::store(&self.stores.all(), &request.store)?;
        let how = CreateLvol { name: request.name, size: request.size, thick: request.thick, ..CreateLvol::default() };
        answer(store.create_lvol(how).await)
    }

    async fn snapshot_lvol(&self, request: Request<SnapshotLvolRequest>) -> Answer<Lvol> {
        let request = request.into_inner();
        let (store, lvol) = self.lvol(&request.lvol).await?;
        let how = CreateSnapshot {
            lvol: lvol.uuid,
            name: request.name,
            uuid: None,
            attributes: attributes::of_snapshot(lvol.uuid, &lvol.attributes, lvol.size),
            hidden: false,
        };
        let taken = store.snapshot(vec![how]).await.map_err(|e| from_engine(&e))?;
        let snapshot =
            taken.into_iter().next().ok_or_else(|| Status::internal("a snapshot was taken but not described"))?;
        Ok(Response::new(snapshot.into()))
    }

    async fn clone_lvol(&self, request: Request<CloneLvolRequest>) -> Answer<Lvol> {
        let request = request.into_inner();
        let (store, snapshot) = self.lvol(&request.snapshot).await?;
        let how = CreateClone {
            snapshot: snapshot.uuid,
            name: request.name,
            uuid: None,
            size: request.size,
            thick: request.thick,
            attributes: attributes::inherited(&snapshot.attributes),
        };
        answer(store.clone_snapshot(how).await)
    }

    async fn clone_external(&self, request: Request<CloneExternalRequest>) -> Answer<Lvol> {
        let request = request.into_inner();
        let store = resolve::store(&self.stores.all(), &request.store)?;
        let parent = uuid_of(&request.parent)?;
        let how = CreateExternalClone {
            parent,
            name: request.name,
            uuid: None,
            size: request.size,
            thick: request.thick,
            attributes: Default::default(),
            hydrate: !request.no_hydration,
        };
        answer(self.near.clone_external(&self.stores, &store, how).await)
    }

    async fn resize_lvol(&self, request: Request<ResizeLvolRequest>) -> Answer<Lvol> {
        let request = request.into_inner();
        let (store, lvol) = self.lvol(&request.lvol).await?;
        let resized = store.resize(lvol.uuid, request.size).await.map_err(|e| from_engine(&e))?;
        if let Some(export) = store.export_of(lvol.uuid) {
            export.refresh_size().await.map_err(|e| from_engine(&e))?;
        }
        Ok(Response::new(resized.into()))
    }

    async fn rename_lvol(&self, request: Request<RenameLvolRequest>) -> Answer<Lvol> {
        let request = request.into_inner();
        let (store, lvol) = self.lvol(&request.lvol).await?;
        answer(store.rename(lvol.uuid, &request.name).await)
    }

    async fn revert_lvol(&self, request: Request<RevertLvolRequest>) -> Answer<Lvol> {
        let request = request.into_inner();
        let (store, lvol) = self.lvol(&request.lvol).await?;
        let (_, snapshot) = self.lvol(&request.snapshot).await?;
        answer(store.revert(lvol.uuid, snapshot.uuid).await)
    }

    async fn delete_lvol(&self, request: Request<DeleteLvolRequest>) -> Answer<DeleteLvolResponse> {
        let request = request.into_inner();
        let (store, lvol) = self.lvol(&request.lvol).await?;
        store.delete(lvol.uuid, request.deferred).await.map_err(|e| from_engine(&e))?;
        info!(lvol = %lvol.uuid, alias = lvol.alias, "deleted by hand");
        Ok(Response::new(DeleteLvolResponse {}))
    }

    type InflateLvolStream = Stream<WorkUpdate>;

    async fn inflate_lvol(&self, request: Request<LvolRequest>) -> Answer<Self::InflateLvolStream> {
        let (store, lvol) = self.lvol(&request.into_inner().lvol).await?;
        Ok(Response::new(self.long_work(&store, lvol, Work::Inflate)))
    }

    type DecoupleLvolStream = Stream<WorkUpdate>;

    async fn decouple_lvol(&self, request: Request<LvolRequest>) -> Answer<Self::DecoupleLvolStream> {
        let (store, lvol) = self.lvol(&request.into_inner().lvol).await?;
        Ok(Response::new(self.long_work(&store, lvol, Work::Decouple)))
    }

    type HydrateLvolStream = Stream<WorkUpdate>;

    async fn hydrate_lvol(&self, request: Request<LvolRequest>) -> Answer<Self::HydrateLvolStream> {
        let (store, lvol) = self.lvol(&request.into_inner().lvol).await?;
        Ok(Response::new(self.long_work(&store, lvol, Work::Hydrate)))
    }

    async fn pin_lvol(&self, request: Request<PinLvolRequest>) -> Answer<Lvol> {
        let request = request.into_inner();
        let (store, lvol) = self.lvol(&request.lvol).await?;
        let pin = request.pin.ok_or_else(|| Status::invalid_argument("say which lvstore reads it"))?;
        let pin = coppice_engine::Pin { lvstore: uuid_of(&pin.lvstore)?, reader: pin.reader.to_lowercase() };
        answer(store.pin(lvol.uuid, pin).await)
    }

    async fn unpin_lvol(&self, request: Request<UnpinLvolRequest>) -> Answer<UnpinLvolResponse> {
        let request = request.into_inner();
        let lvstore = uuid_of(&request.lvstore)?;
        let (store, lvol) = self.lvol(&request.lvol).await?;
        let readers: Vec<String> =
            lvol.pins.iter().filter(|pin| pin.lvstore == lvstore).map(|pin| pin.reader.clone()).collect();
        store.unpin(lvol.uuid, lvstore).await.map_err(|e| from_engine(&e))?;
        if let Some(served) = &self.served {
            // Who read it under that name, for this lvstore or another, is asked for its pin again.
            served.close(|connection| {
                let name = connection.identity.to_string();
                connection.export == lvol.uuid.to_string() && readers.contains(&name)
            });
        }
        info!(lvol = %lvol.uuid, %lvstore, "unpinned by hand");
        Ok(Response::new(UnpinLvolResponse {}))
    }

    type ReadLvolStream = Stream<DataChunk>;

    async fn read_lvol(&self, request: Request<ReadLvolRequest>) -> Answer<Self::ReadLvolStream> {
        let request = request.into_inner();
        let (store, lvol) = self.lvol(&request.lvol).await?;
        let outside = |what: String| Status::out_of_range(format!("{what}; {} has {} bytes", lvol.alias, lvol.size));
        let room = lvol.size.checked_sub(request.offset);
        let room = room.ok_or_else(|| outside(format!("offset {} is beyond the end", request.offset)))?;
        let length = request.length.unwrap_or(room);
        if length > room {
            return Err(outside(format!("{length} bytes at {} go beyond the end", request.offset)));
        }
        let (sender, receiver) = mpsc::channel(2);
        let (store, id, mut at) = (store.clone(), lvol.uuid, request.offset);
        let end = at.saturating_add(length);
        tokio::spawn(async move {
            while at < end {
                let count = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                let chunk = store.read(id, at, count).await.map_err(|e| from_engine(&e));
                let stop = chunk.is_err();
                if sender.send(chunk.map(|data| DataChunk { data })).await.is_err() || stop {
                    return;
                }
                at = at.saturating_add(count as u64);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn write_lvol(&self, request: Request<Streaming<WriteLvolRequest>>) -> Answer<WriteLvolResponse> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|part| part.part);
        let Some(write_lvol_request::Part::Target(target)) = first else {
            return Err(Status::invalid_argument("the first message must name the lvol"));
        };
        let (store, lvol) = self.lvol(&target.lvol).await?;
        let mut written: u64 = 0;
        while let Some(part) = parts.message().await? {
            let Some(write_lvol_request::Part::Data(data)) = part.part else {
                return Err(Status::invalid_argument("only the first message may name the lvol"));
            };
            let count = data.len() as u64;
            let at = target.offset.saturating_add(written);
            store.write(lvol.uuid, at, data).await.map_err(|e| from_engine(&e))?;
            written = written.saturating_add(count);
        }
        store.flush(lvol.uuid).await.map_err(|e| from_engine(&e))?;
        Ok(Response::new(WriteLvolResponse { written }))
    }

    async fn export_lvol(&self, request: Request<ExportLvolRequest>) -> Answer<ExportLvolResponse> {
        let request = request.into_inner();
        let (store, lvol) = self.lvol(&request.lvol).await?;
        let export = store.export_fuse(lvol.uuid, &self.exports, request.read_only).await;
        let export = export.map_err(|e| from_engine(&e))?;
        let lvol = store.lvol(lvol.uuid).await.map_err(|e| from_engine(&e))?;
        Ok(Response::new(ExportLvolResponse {
            device: export.device().display().to_string(),
            read_only: export.read_only(),
            lvol: Some(lvol.into()),
        }))
    }

    async fn unexport_lvol(&self, request: Request<LvolRequest>) -> Answer<Lvol> {
        let (store, lvol) = self.lvol(&request.into_inner().lvol).await?;
        match store.export_of(lvol.uuid) {
            Some(export) => export.stop().await.map_err(|e| from_engine(&e))?,
            None => return Err(Status::not_found(format!("{} is not exported", lvol.alias))),
        }
        answer(store.lvol(lvol.uuid).await)
    }
}
