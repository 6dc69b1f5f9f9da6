//! How `coppice standalone` reaches other processes of its kind, and is reached: addresses and certificates from the command
//! line. A certificate's only DNS name is who its owner is.

use crate::args::external_file;
use anyhow::{Context, Result, bail};
use clap::Args;
use coppice_engine::shard::ShardHandle;
use coppice_engine::{Stores, external};
use coppice_nbd::client::{Address, Endpoint, Resolving};
use coppice_nbd::server::{Limits, Listener, Server};
use coppice_nbd::tls::{Certificates, Pem};
use coppice_node::remote::{Exports, Parents, SOCKET, Whereabouts};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, lookup_host};
use tracing::{info, warn};
use uuid::Uuid;

/// How often it is looked whether the files with the certificates have changed.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(5);

#[derive(Args, Clone, Debug, Default)]
pub struct RemoteArgs {
    /// Serve pinned snapshots to others here, over NBD with mutual TLS
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tls_cert")]
    pub listen: Option<SocketAddr>,
    /// Another process that has snapshots: the name in its certificate, and where it listens. May be given several times
    #[arg(long = "peer", value_name = "NAME=HOST:PORT", value_parser = peer, requires = "tls_cert")]
    pub peers: Vec<(String, String)>,
    /// Own certificate chain, PEM. Read anew when it changes
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Whose signatures count, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
    /// The snapshot of that UUID, which lvols have as external parent, is this file or device
    #[arg(long = "parent-file", value_name = "UUID=FILE|DEV", value_parser = external_file)]
    pub files: Vec<(Uuid, PathBuf)>,
    /// How long a read waits for a parent that is away, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = external::PARENT_PATIENCE.as_secs())]
    pub parent_timeout: u64,
    /// Most bytes per second that are copied over, for each lvstore [default: as much as there is]
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub hydration_rate: Option<u64>,
}

fn peer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, at)) if !name.is_empty() && at.contains(':') => Ok((name.to_lowercase(), at.to_string())),
        _ => Err("NAME=HOST:PORT is expected".into()),
    }
}

/// The certificates on the command line, and the files that they come from.
struct Files {
    chain: PathBuf,
    key: PathBuf,
    authorities: PathBuf,
}

impl Files {
    fn read(&self) -> Result<[Vec<u8>; 3]> {
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        Ok([read(&self.chain)?, read(&self.key)?, read(&self.authorities)?])
    }

    fn changed(&self) -> [Option<SystemTime>; 3] {
        let changed = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        [changed(&self.chain), changed(&self.key), changed(&self.authorities)]
    }
}

/// Goes on reading them as they change, for ever. What does not fit together is said, and the old ones stay.
async fn follow(files: Files, certificates: Certificates) {
    let mut seen = files.changed();
    loop {
        tokio::time::sleep(CERTIFICATES_EVERY).await;
        let now = files.changed();
        if now == seen {
            continue;
        }
        let replaced = files.read().and_then(|[chain, key, authorities]| {
            Ok(certificates.replace(Pem { chain: &chain, key: &key, authorities: &authorities })?)
        });
        match replaced {
            Ok(()) => {
                info!(identity = certificates.identity(), "new certificates");
                seen = now;
            }
            Err(e) => warn!("the new certificates are not used: {e:#}"),
        }
    }
}

/// What the arguments come to.
pub struct Remote {
    certificates: Option<Certificates>,
    listener: Option<TcpListener>,
    args: RemoteArgs,
}

impl Remote {
    /// Call it before anything is open: wrong files and addresses in use end here.
    pub async fn new(args: RemoteArgs) -> Result<Remote> {
        let certificates = match (&args.tls_cert, &args.tls_key, &args.tls_ca) {
            (Some(chain), Some(key), Some(authorities)) => {
                let files = Files { chain: chain.clone(), key: key.clone(), authorities: authorities.clone() };
                let [chain, key, authorities] = files.read()?;
                let certificates = Certificates::new(Pem { chain: &chain, key: &key, authorities: &authorities })?;
                tokio::spawn(follow(files, certificates.clone()));
                Some(certificates)
            }
            _ => None,
        };
        let listener = match args.listen {
            Some(at) => Some(TcpListener::bind(at).await.with_context(|| format!("listen on {at}"))?),
            None => None,
        };
        if certificates.is_none() && (listener.is_some() || !args.peers.is_empty()) {
            bail!("--listen and --peer need certificates: --tls-cert, --tls-key and --tls-ca");
        }
        Ok(Remote { certificates, listener, args })
    }

    /// How lvstores reach the parents of their lvols.
    pub fn access(&self, stores: &Stores, shard: ShardHandle) -> external::Access {
        let peers = Arc::new(self.args.peers.clone());
        let remote = self.certificates.clone().filter(|_| !peers.is_empty());
        let remote = remote.map(|certificates| (one_after_the_other(peers), certificates));
        let files = self.args.files.iter().cloned().collect();
        let parents = Parents::new(stores.clone(), shard, files, remote, tokio::runtime::Handle::current());
        external::Access {
            resolver: Some(Arc::new(parents)),
            patience: Duration::from_secs(self.args.parent_timeout),
            hydration_bytes_per_second: self.args.hydration_rate,
            ..external::Access::default()
        }
    }

    /// Serves the snapshots of these lvstores: to others, if there is an address for that, and to this machine.
    pub fn serve(self, stores: &Stores, run_dir: &Path) -> Result<Servers> {
        let exports = Arc::new(Exports::new(stores.clone()));
        let socket = run_dir.join(SOCKET);
        let local = coppice_proto::unix::listen(&socket).with_context(|| format!("listen on {}", socket.display()))?;
        let here = Server::start(Listener::Unix(local), exports.clone(), Limits::default())?;
        let others = match (self.listener, self.certificates) {
            (Some(listener), Some(certificates)) => {
                let at = listener.local_addr().context("own address")?;
                info!(%at, identity = certificates.identity(), "pinned snapshots are served");
                let listener = Listener::Tcp { listener, certificates };
                Some(Arc::new(Server::start(listener, exports, Limits::default())?))
            }
            _ => None,
        };
        Ok(Servers { here, others, socket })
    }
}

/// Nobody knows which peer has a snapshot: each is asked in turn.
fn one_after_the_other(peers: Arc<Vec<(String, String)>>) -> Whereabouts {
    Arc::new(move |_| {
        let (peers, turn) = (peers.clone(), Arc::new(AtomicUsize::new(0)));
        Arc::new(move || -> Resolving {
            let n = turn.fetch_add(1, Ordering::Relaxed) % peers.len().max(1);
            let peer = peers.get(n).cloned();
            Box::pin(async move {
                let (name, at) = peer.ok_or("there are no peers")?;
                let found = lookup_host(&at).await.map_err(|e| format!("{at}: {e}"))?.next();
                let address = found.ok_or_else(|| format!("{at}: it has no address"))?;
                Ok(Endpoint { address: Address::Tcp(address), identity: Some(name) })
            })
        })
    })
}

/// The NBD servers that run.
pub struct Servers {
    here: Server,
    pub others: Option<Arc<Server>>,
    socket: PathBuf,
}

impl Servers {
    /// Answers what is in flight, and ends.
    pub async fn stop(self) {
        self.here.stop().await;
        if let Some(others) = &self.others {
            others.stop().await;
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}
