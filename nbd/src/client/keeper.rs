//! The task that keeps a remote device connected: it dials when the table says so, and lets the table see the time.

use super::dial::{DialError, Dialed, dial};
use super::{Shared, link};
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

/// Whatever ends this task, the runtime's end included, nobody waits for it any longer.
struct LastWord(Arc<Shared>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.close();
    }
}

type Dialing = Pin<Box<dyn Future<Output = Result<Dialed, DialError>> + Send>>;

pub(super) async fn keep(shared: Arc<Shared>) {
    let _last_word = LastWord(shared.clone());
    let mut dialing: Option<Dialing> = None;
    loop {
        let (plan, closed, size) = shared.with(|table| (table.tick(Instant::now()), table.is_closed(), table.size()));
        if closed {
            return;
        }
        if plan.dial && dialing.is_none() {
            let config = shared.config.clone();
            dialing = Some(Box::pin(async move { dial(&config, size).await }));
        }
        let dialed = async {
            match &mut dialing {
                Some(dialing) => dialing.await,
                None => pending().await,
            }
        };
        let later = async {
            match plan.next {
                Some(next) => sleep_until(next.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            dialed = dialed => {
                dialing = None;
                arrived(&shared, dialed);
            }
            () = shared.keeper.notified() => {
                // What it dials may be where the server was.
                if shared.nudged.swap(false, Ordering::Relaxed) {
                    dialing = None;
                }
            }
            () = later => {}
        }
    }
}

fn arrived(shared: &Arc<Shared>, dialed: Result<Dialed, DialError>) {
    let now = Instant::now();
    match dialed {
        Ok(dialed) => {
            let (orders, coming) = mpsc::unbounded_channel();
            let (id, heard) = shared.with(|table| table.link_up(dialed.peer.clone(), orders, now));
            tokio::spawn(link::run(shared.clone(), id, heard, dialed, coming));
        }
        Err(DialError { address, reason, refused }) => {
            let export = &shared.config.export;
            tracing::debug!(export, ?address, reason, refused, "cannot connect");
            shared.with(|table| table.dial_failed(address, reason, refused, now));
        }
    }
}
