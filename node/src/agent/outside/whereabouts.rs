//! Where a snapshot is served at the moment: in which lvstore it is, say our own objects; on which node and at which address
//! that is, says its Lvstore object, which the API server is asked for whenever a connection is made.

use super::super::Agent;
use super::super::failure::{Failure, ask};
use super::publish::Origin;
use crate::remote::Whereabouts;
use coppice_kube_api::{Lvstore, SELECT_NODE};
use coppice_nbd::client::{Address, Endpoint, Resolving};
use kube::Api;
use kube::api::ListParams;
use std::sync::{Arc, Weak};
use std::time::Duration;
use uuid::Uuid;

/// How long our own certificate is waited for; less than a device gives us to answer.
const CERTIFIED: Duration = Duration::from_secs(3);

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
/// looked for first.
pub async fn lvstores_of(api: &Api<Lvstore>, uuid: Uuid, node: Option<&str>) -> Result<Vec<Lvstore>, Failure> {
    let is = |object: &Lvstore| object.status.as_ref().and_then(|status| status.uuid) == Some(uuid);
    if let Some(node) = node {
        let there = ListParams::default().fields(&format!("{SELECT_NODE}={node}"));
        let found: Vec<Lvstore> = ask(api.list(&there)).await?.items.into_iter().filter(is).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(ask(api.list(&ListParams::default())).await?.items.into_iter().filter(is).collect())
}

impl Agent {
    async fn endpoint_of(&self, snapshot: Uuid) -> Result<Endpoint, String> {
        // Whoever shows up without a certificate is refused, and asks again much later.
        let mut certified = self.outside.certified.subscribe();
        if tokio::time::timeout(CERTIFIED, certified.wait_for(|certified| *certified)).await.is_err() {
            return Err("this node has no certificate yet: the controller signs it".into());
        }
        let Some(Origin { lvstore, node }) = self.origin_of(snapshot) else {
            return Err(format!("no object says in which lvstore the snapshot {snapshot} is"));
        };
        let api: Api<Lvstore> = Api::all(self.config.client.clone());
        let found = lvstores_of(&api, lvstore, node.as_deref()).await.map_err(|e| e.to_string())?;
        let served = found.iter().find_map(|object| {
            let at = object.status.as_ref()?.export_endpoint.as_deref()?;
            Some((object.spec.node.clone(), at.to_string()))
        });
        let Some((node, at)) = served else {
            let node = node.unwrap_or_default();
            return Err(match found.is_empty() {
                true => format!("there is no Lvstore object for the lvstore {lvstore} (once of the node {node})"),
                false => format!("the lvstore {lvstore} of the node {node} does not serve snapshots yet"),
            });
        };
        let address = at.parse().map_err(|_| format!("the node {node} is reached at {at:?}, which is no address"))?;
        Ok(Endpoint { address: Address::Tcp(address), identity: Some(node) })
    }
}
