//! Where a snapshot is served at the moment: in which lvstore it is, say our own objects; on which node and at which address
//! that is, says its Lvstore object, which the API server is asked for when a connection is made. One answer is for all who ask
//! about the same time, and the last good one holds while the API server is away: TLS proves who answers there.
//!
//! An agent writes the status of its own node's objects, and may write anything there. So an object on another node than the
//! snapshot's first one counts only if its spec, which only people write, takes over the store (`spec.adopt`).

use super::super::failure::{Failure, ask};
use super::super::{Agent, lock};
use super::identity::certifiable;
use super::publish::Origin;
use crate::remote::Whereabouts;
use coppice_kube_api::{Lvstore, LvstoreCondition, SELECT_NODE, is_true};
use coppice_nbd::client::{Address, Endpoint, Resolving};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long our own certificate is waited for; less than a device gives us to answer.
const CERTIFIED: Duration = Duration::from_secs(3);
/// How long an answer of the API server counts.
const FRESH: Duration = Duration::from_secs(1);
/// How long the API server is waited for if it is known where the lvstore was; less than a connection gives us to answer.
const ASKED_MAX: Duration = Duration::from_secs(2);
/// Most lvstores that are remembered.
const KNOWN_MAX: usize = 1024;

/// What was found out about one lvstore.
#[derive(Default)]
struct Place {
    /// When the API server was last asked, and what came of it.
    last: Option<(Instant, Result<Endpoint, String>)>,
    good: Option<Endpoint>,
}

type Shared = Arc<tokio::sync::Mutex<Place>>;

/// Where lvstores are served, by their UUID and the node that had them first.
#[derive(Default)]
pub struct Known(Mutex<HashMap<(Uuid, Option<String>), Shared>>);

impl Known {
    fn place(&self, origin: &Origin) -> Shared {
        let mut all = lock(&self.0);
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        all.entry((origin.lvstore, origin.node.clone())).or_default().clone()
    }
}

/// For the engine, which asks for parents that are not here.
pub fn whereabouts(agent: Weak<Agent>) -> Whereabouts {
    Arc::new(move |snapshot| {
        let agent = agent.clone();
        Arc::new(move || -> Resolving {
            let agent = agent.clone();
            Box::pin(async move {
                let agent = agent.upgrade().ok_or("the agent has ended")?;
                agent.endpoint_of(snapshot).await
            })
        })
    })
}

/// The objects of a lvstore: more than one only where somebody has made a second one for the same drive. `node`: where it is
/// looked for first. From the status of one elsewhere that does not take the store over, what others go by is left out: it
/// serves nowhere, and does not say what it depends on.
pub async fn lvstores_of(api: &Api<Lvstore>, uuid: Uuid, node: Option<&str>) -> Result<Vec<Lvstore>, Failure> {
    let is = |object: &Lvstore| object.status.as_ref().and_then(|status| status.uuid) == Some(uuid);
    if let Some(node) = node {
        let there = ListParams::default().fields(&format!("{SELECT_NODE}={node}"));
        let found: Vec<Lvstore> = ask(api.list(&there)).await?.items.into_iter().filter(is).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let mut found: Vec<Lvstore> = ask(api.list(&ListParams::default())).await?.items.into_iter().filter(is).collect();
    for object in found.iter_mut().filter(|object| Some(object.spec.node.as_str()) != node) {
        if !adopts(object, uuid)
            && let Some(status) = &mut object.status
        {
            (status.export_endpoint, status.external_parents) = (None, None);
        }
    }
    Ok(found)
}

fn adopts(object: &Lvstore, uuid: Uuid) -> bool {
    object.spec.adopt == Some(uuid)
}

/// Where one of them is served: an open one before another.
fn served(found: &[Lvstore]) -> Option<(bool, &str, &str)> {
    fn at(object: &Lvstore) -> Option<(bool, &str, &str)> {
        let status = object.status.as_ref()?;
        let ready = is_true(&status.conditions, LvstoreCondition::Ready);
        Some((ready, object.spec.node.as_str(), status.export_endpoint.as_deref()?))
    }
    found.iter().filter_map(at).reduce(|best, next| if next.0 && !best.0 { next } else { best })
}

impl Agent {
    async fn endpoint_of(&self, snapshot: Uuid) -> Result<Endpoint, String> {
        // Whoever shows up without a certificate is refused, and asks again much later.
        let mut certified = self.outside.certified.subscribe();
        if tokio::time::timeout(CERTIFIED, certified.wait_for(|certified| *certified)).await.is_err() {
            return Err("this node has no certificate yet: the controller signs it".into());
        }
        let Some(origin) = self.origin_of(snapshot) else {
            return Err(format!("no object says in which lvstore the snapshot {snapshot} is"));
        };
        let place = self.known.place(&origin);
        // Whoever comes meanwhile takes the same answer.
        let mut place = place.lock().await;
        if let Some((at, answer)) = &place.last
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let asking = self.ask_where(&origin);
        let answer = match &place.good {
            Some(_) => tokio::time::timeout(ASKED_MAX, asking).await.unwrap_or(Err(Failure::Late)),
            None => asking.await,
        };
        let answer = match (answer, &place.good) {
            (Ok(answer), _) => answer,
            (Err(_), Some(good)) => Ok(good.clone()),
            (Err(e), None) => Err(e.to_string()),
        };
        if let Ok(endpoint) = &answer {
            place.good = Some(endpoint.clone());
        }
        place.last = Some((Instant::now(), answer.clone()));
        answer
    }

    /// What the API server says of it; an error if it says nothing.
    pub(super) async fn ask_where(
        &self,
        Origin { lvstore, node }: &Origin,
    ) -> Result<Result<Endpoint, String>, Failure> {
        let api: Api<Lvstore> = Api::all(self.config.client.clone());
        let mut found = lvstores_of(&api, *lvstore, node.as_deref()).await?;
        if !served(&found).is_some_and(|(ready, ..)| ready) && node.is_some() {
            // Its drive may have been moved.
            found.extend(lvstores_of(&api, *lvstore, None).await?);
        }
        let Some((_, at_node, at)) = served(&found) else {
            let node = node.as_deref().unwrap_or_default();
            let elsewhere = found.iter().find(|object| object.spec.node != node);
            return Ok(Err(match elsewhere {
                None if found.is_empty() => {
                    format!("there is no Lvstore object for the lvstore {lvstore} (once of the node {node})")
                }
                Some(object) if !found.iter().any(|object| object.spec.node == node) && !adopts(object, *lvstore) => {
                    format!(
                        "the lvstore {lvstore} of the node {node} is unknown there: the Lvstore object {} of the node {} \
                         says that it has it; if somebody moved the drive, its spec.adopt has to say so",
                        object.name_any(),
                        object.spec.node
                    )
                }
                _ => certifiable(node).err().unwrap_or_else(|| {
                    format!("the lvstore {lvstore} of the node {node} does not serve snapshots yet")
                }),
            }));
        };
        let address = at
            .parse()
            .map(Address::Tcp)
            .map_err(|_| format!("the node {at_node} is reached at {at:?}, which is no address"));
        Ok(address.map(|address| Endpoint { address, identity: Some(at_node.to_string()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Export;
    use super::super::publish::Intent;
    use super::*;
    use crate::agent::{Config, Timing};
    use async_trait::async_trait;
    use coppice_controller::local::Quiesce;
    use coppice_controller::volume::{Consistency, Result as VolumeResult};
    use coppice_fake_api::{Api as Server, Health};
    use futures_util::future::join_all;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    const LVSTORE: Uuid = Uuid::from_u128(1);
    const SNAPSHOT: Uuid = Uuid::from_u128(2);

    struct Unmounted;

    #[async_trait]
    impl Quiesce for Unmounted {
        async fn before_snapshot(&self, _: Uuid, _: Consistency) -> VolumeResult<()> {
            Ok(())
        }
        async fn after_snapshot(&self, _: Uuid, _: Consistency) -> VolumeResult<()> {
            Ok(())
        }
    }

    /// An agent of node-b that has its certificate, and is about to read a snapshot of node-a.
    fn agent(server: &Server, dir: &TempDir) -> (Arc<Agent>, Intent) {
        let export = Export {
            address: ([127, 0, 0, 1], 0).into(),
            namespace: "coppice".into(),
            unpin_after: Duration::from_secs(1),
            patience: Duration::from_secs(1),
            hydration_bytes_per_second: None,
        };
        let agent = Agent::new(Config {
            client: server.client(),
            node: "node-b".into(),
            engine: Err("none is needed".into()),
            stores: coppice_engine::Stores::default(),
            absent: crate::Absent::default(),
            quiesce: Arc::new(Unmounted),
            file_dir: dir.path().to_path_buf(),
            export: Some(export),
            timing: Timing::default(),
        });
        agent.outside.certified.send_replace(true);
        let origin = Origin { lvstore: LVSTORE, node: Some("node-a".into()) };
        let intent = agent.intend(Uuid::from_u128(3), SNAPSHOT, origin);
        (agent, intent)
    }

    fn lvstore(name: &str, node: &str, at: Option<&str>, ready: bool, adopt: Option<Uuid>) -> Value {
        let ready = json!({ "type": "Ready", "status": if ready { "True" } else { "False" }, "reason": "Open",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        json!({ "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": name },
            "spec": { "node": node, "name": "pool", "device": "pool.img", "adopt": adopt },
            "status": { "uuid": LVSTORE, "exportEndpoint": at, "conditions": [ready] } })
    }

    async fn found(agent: &Agent) -> Result<(String, String), String> {
        let endpoint = agent.endpoint_of(SNAPSHOT).await?;
        Ok((endpoint.address.to_string(), endpoint.identity.unwrap_or_default()))
    }

    fn is(at: &str, node: &str) -> Result<(String, String), String> {
        Ok((at.to_string(), node.to_string()))
    }

    #[tokio::test]
    async fn many_ask_once_and_the_last_answer_outlives_the_api_server() {
        let (server, dir) = (Server::new(), tempfile::tempdir().expect("a directory"));
        server.put("lvstores", lvstore("node-a-pool", "node-a", Some("10.0.0.1:7"), true, None));
        let (agent, _intent) = agent(&server, &dir);
        let all = join_all((0..100).map(|_| found(&agent))).await;
        assert!(all.iter().all(|answer| *answer == is("10.0.0.1:7", "node-a")), "{all:?}");
        let asked = server.state().requests.iter().filter(|request| *request == "GET lvstores").count();
        assert_eq!(asked, 1);
        for health in [Health::Refusing, Health::Silent] {
            server.set_health(health);
            tokio::time::sleep(FRESH).await;
            assert_eq!(found(&agent).await, is("10.0.0.1:7", "node-a"), "{health:?}");
        }
        server.set_health(Health::Up);
        server.put("lvstores", lvstore("node-a-pool", "node-a", Some("10.0.0.2:7"), true, None));
        tokio::time::sleep(FRESH).await;
        assert_eq!(found(&agent).await, is("10.0.0.2:7", "node-a"), "it has moved");
    }

    #[tokio::test]
    async fn only_who_was_told_to_takes_over_a_lvstore() {
        let (server, dir) = (Server::new(), tempfile::tempdir().expect("a directory"));
        let (agent, _intent) = agent(&server, &dir);
        let next = async || {
            tokio::time::sleep(FRESH).await;
            found(&agent).await
        };
        let none = found(&agent).await;
        assert!(none.as_ref().is_err_and(|why| why.contains("there is no Lvstore object")), "{none:?}");
        // An agent may write such a status.
        server.put("lvstores", lvstore("node-c-pool", "node-c", Some("10.0.0.3:7"), true, None));
        let rogue = next().await;
        assert!(rogue.as_ref().is_err_and(|why| why.contains("node-c") && why.contains("spec.adopt")), "{rogue:?}");
        server.put("lvstores", lvstore("node-a-pool", "node-a", None, false, None));
        let closed = next().await;
        assert!(closed.as_ref().is_err_and(|why| why.contains("does not serve snapshots yet")), "{closed:?}");
        // Two of the same node: the one that is open.
        server.put("lvstores", lvstore("node-a-old", "node-a", Some("10.0.0.4:7"), false, None));
        assert_eq!(next().await, is("10.0.0.4:7", "node-a"));
        server.put("lvstores", lvstore("node-a-pool", "node-a", Some("10.0.0.1:7"), true, None));
        assert_eq!(next().await, is("10.0.0.1:7", "node-a"));
        // Somebody moved the drive, and the old object is still there.
        server.put("lvstores", lvstore("node-a-pool", "node-a", Some("10.0.0.1:7"), false, None));
        server.put("lvstores", lvstore("node-c-pool", "node-c", Some("10.0.0.3:7"), true, Some(LVSTORE)));
        assert_eq!(next().await, is("10.0.0.3:7", "node-c"));
    }
}
