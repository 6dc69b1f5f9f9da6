//! A store on a real file, on real shards: the short way to see that the parts fit.

use super::Lvstore;
use crate::api::*;
use crate::device::{Device, OpenMode};
use crate::error::Result;
use crate::export::Volume;
use crate::lvol::LvolIo;
use crate::shard::{Shard, ShardHandle, ShardThreads};
use std::path::Path;
use std::sync::Arc;

fn on_shard<R, F>(threads: &ShardThreads, f: impl FnOnce(Shard, Vec<ShardHandle>) -> F + Send + 'static) -> Result<R>
where
    R: Send + 'static,
    F: Future<Output = Result<R>> + 'static,
{
    let handles = threads.handles().to_vec();
    crate::shard::block_on(threads.handles()[0].call(move |shard| f(shard, handles)))
}

async fn open(shard: &Shard, handles: Vec<ShardHandle>, path: &Path) -> Result<Arc<Lvstore>> {
    let device = Device::open(path, OpenMode::ReadWrite)?;
    Lvstore::open(shard, handles, device, OpenStore::default(), 16 << 20).await
}

async fn put(shard: &Shard, io: &LvolIo, off: u64, byte: u8, len: usize) -> Result<()> {
    let buf = shard.buf(len).slice(0, len);
    buf.copy_in(0, &vec![byte; len]);
    io.write(off, buf, false).await
}

async fn get(shard: &Shard, io: &LvolIo, off: u64, len: usize) -> Result<Vec<u8>> {
    let buf = shard.buf(len).slice(0, len);
    io.read(off, buf.clone()).await?;
    Ok(buf.to_vec())
}

#[test]
fn the_life_of_a_volume() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(64 << 20).expect("sized");
    let path = file.path().to_path_buf();
    let threads = ShardThreads::start(2).expect("threads");
    let path2 = path.clone();
    on_shard(&threads, move |shard, handles| async move {
        let device = Device::open(&path2, OpenMode::ReadWrite)?;
        let how = CreateStore {
            file_size: None,
            name: "lvs".into(),
            cluster_size: Some(64 << 10),
            max_size: None,
            block_size: None,
            force: false,
            owner: None,
        };
        Lvstore::create(&shard, &device, &how).await?;
        drop(device);
        let lv = open(&shard, handles, &path2).await?;
        let a = lv.create_lvol(&shard, CreateLvol { name: "a".into(), size: 8 << 20, ..Default::default() }).await?;
        let io = LvolIo::open(&shard, &lv, a.uuid)?;
        put(&shard, &io, 4096, 1, 4096).await?;
        put(&shard, &io, 60 << 10, 2, 200 << 10).await?;
        io.flush().await?;
        let snap = CreateSnapshot {
            lvol: a.uuid,
            name: "s".into(),
            uuid: None,
            attributes: Default::default(),
            hidden: false,
        };
        let s = lv.snapshot(&shard, vec![snap]).await?.remove(0);
        put(&shard, &io, 4096, 3, 4096).await?;
        assert_eq!(get(&shard, &io, 4096, 4096).await?, vec![3; 4096]);
        let s_io = LvolIo::open(&shard, &lv, s.uuid)?;
        assert_eq!(get(&shard, &s_io, 4096, 4096).await?, vec![1; 4096]);
        assert_eq!(get(&shard, &s_io, 0, 4096).await?, vec![0; 4096]);
        assert_eq!(get(&shard, &io, 60 << 10, 200 << 10).await?, vec![2; 200 << 10]);
        drop(s_io);
        assert_eq!(lv.check(&shard).await?, vec![]);
        lv.delete(&shard, s.uuid, false).await?;
        lv.background_done().await;
        assert_eq!(get(&shard, &io, 60 << 10, 200 << 10).await?, vec![2; 200 << 10]);
        io.discard(64 << 10, 64 << 10).await?;
        assert_eq!(get(&shard, &io, 64 << 10, 64 << 10).await?, vec![0; 64 << 10]);
        drop(io);
        assert_eq!(lv.check(&shard).await?, vec![]);
        lv.close(&shard).await
    })
    .expect("first life");
    on_shard(&threads, move |shard, handles| async move {
        let lv = open(&shard, handles, &path).await?;
        assert_eq!(lv.info().bstype, "LVOLSTORE");
        assert!(lv.info().clean);
        let a = lv.lvols().remove(0);
        assert_eq!((a.name.as_str(), a.kind), ("a", LvolKind::Lvol));
        let io = LvolIo::open(&shard, &lv, a.uuid)?;
        assert_eq!(get(&shard, &io, 4096, 4096).await?, vec![3; 4096]);
        assert_eq!(get(&shard, &io, 0, 4096).await?, vec![0; 4096]);
        drop(io);
        assert_eq!(lv.check(&shard).await?, vec![]);
        let info = lv.info();
        assert_eq!(
            info.total_clusters,
            info.metadata_clusters
                + info.allocated_clusters
                + info.reserved_clusters
                + info.quarantined_clusters
                + info.free_clusters
        );
        lv.delete(&shard, a.uuid, false).await?;
        lv.close(&shard).await
    })
    .expect("second life");
    threads.stop();
}
