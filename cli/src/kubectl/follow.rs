//! Waiting for others' work, while showing what they say. It can be cut off at any time: the work goes on without us.

use super::cluster::{Cluster, refused};
use super::events::{self, Said};
use super::objects::{phase_of_claim, text};
use super::print::say;
use super::world::hydrated;
use crate::size::human;
use anyhow::{Result, bail};
use coppice_kube_api::Lvol;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How often the API server is asked.
const EVERY: Duration = Duration::from_millis(250);

/// What was said already.
pub struct Follower<'a> {
    cluster: &'a Cluster,
    began: Instant,
    timeout: Duration,
    shown: HashSet<(String, String)>,
    last: Option<String>,
}

impl<'a> Follower<'a> {
    pub fn new(cluster: &'a Cluster, timeout: Duration) -> Follower<'a> {
        Follower { cluster, began: Instant::now(), timeout, shown: HashSet::new(), last: None }
    }

    fn seconds(&self) -> String {
        format!("{:.1} s", self.began.elapsed().as_secs_f64())
    }

    /// Sleeps until it is time to look again, having shown what is new of `about`: its namespace and UID. Ends with an error when the
    /// time is over; `what` says what was waited for.
    async fn pause(&mut self, about: (&str, Option<&str>), what: &str, describe: &str) -> Result<()> {
        if let Some(uid) = about.1 {
            for Said { warning, reason, message, .. } in events::of(self.cluster, Some(about.0), uid).await {
                if warning && self.shown.insert((reason.clone(), message.clone())) {
                    let line = format!("{reason}: {}", message.trim());
                    say(&format!("  {line}"))?;
                    self.last = Some(line);
                }
            }
        }
        if self.began.elapsed() >= self.timeout {
            let last =
                self.last.as_ref().map_or_else(String::new, |last| format!("; the last that was said is: {last}"));
            bail!(
                "waited {} s in vain for {what}{last}. It goes on without this command; kubectl coppice describe {describe} shows how",
                self.timeout.as_secs()
            );
        }
        tokio::time::sleep(EVERY).await;
        Ok(())
    }

    /// Until a claim is bound. Answers with the claim.
    pub async fn bound(&mut self, namespace: &str, name: &str) -> Result<PersistentVolumeClaim> {
        let api = self.cluster.claims(namespace);
        let mut uid: Option<String> = None;
        loop {
            let found = api.get_opt(name).await.map_err(|e| refused(e, &format!("read the PVC {name}")))?;
            let Some(claim) = found.filter(|claim| uid.is_none() || claim.uid() == uid) else {
                bail!("the PVC {namespace}/{name} was deleted meanwhile");
            };
            uid = claim.uid();
            match phase_of_claim(&claim) {
                "Bound" => {
                    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
                    say(&format!("{namespace}/{name} is bound to {volume}, after {}", self.seconds()))?;
                    return Ok(claim);
                }
                "Lost" => bail!("the PVC {namespace}/{name} lost its PersistentVolume"),
                _ => {}
            }
            let what = format!("{namespace}/{name} to be bound");
            self.pause((namespace, uid.as_deref()), &what, &format!("pvc/{name}")).await?;
        }
    }

    /// Until all the data of a lvol is on its node; at once where it always was.
    pub async fn hydrated(&mut self, name: &str, lvol: &str) -> Result<()> {
        let api = self.cluster.lvols();
        let mut shown = None;
        loop {
            let found: Option<Lvol> =
                api.get_opt(lvol).await.map_err(|e| refused(e, &format!("read the lvol {lvol}")))?;
            let hydration = found.and_then(|lvol| lvol.status?.hydration);
            let Some(hydration) = hydration else {
                if shown.is_some() {
                    say(&format!("{name} has all its data, after {}", self.seconds()))?;
                }
                return Ok(());
            };
            let part = hydrated(&hydration);
            if shown.as_ref() != Some(&part) {
                let left = human(hydration.remaining.bytes());
                let eta = hydration.eta_seconds.map_or_else(String::new, |eta| format!(", about {eta} s more"));
                say(&format!("  {part} of its data is here, {left} left{eta}"))?;
                shown = Some(part);
            }
            self.pause(("", None), &format!("the data of {name}"), name).await?;
        }
    }

    /// Until a VolumeSnapshot can be used.
    pub async fn ready(&mut self, namespace: &str, name: &str) -> Result<()> {
        let api = self.cluster.snapshots(namespace);
        loop {
            let found = api.get_opt(name).await.map_err(|e| refused(e, &format!("read the VolumeSnapshot {name}")))?;
            let Some(snapshot) = found else { bail!("the VolumeSnapshot {namespace}/{name} was deleted meanwhile") };
            if snapshot.data.pointer("/status/readyToUse").and_then(serde_json::Value::as_bool) == Some(true) {
                let size = text(&snapshot, "/status/restoreSize");
                return say(&format!("{namespace}/{name} can be used ({size}), after {}", self.seconds()));
            }
            let error = text(&snapshot, "/status/error/message").to_string();
            if !error.is_empty() && self.shown.insert((String::new(), error.clone())) {
                say(&format!("  {error}"))?;
                self.last = Some(error);
            }
            let what = format!("{namespace}/{name} to be taken");
            self.pause((namespace, snapshot.uid().as_deref()), &what, &format!("snapshot/{name}")).await?;
        }
    }

    /// Until `left` is empty: `look` takes out of it whom there is no need to wait for any more.
    pub async fn until_none(&mut self, what: &str, mut look: impl AsyncFnMut() -> Result<usize>) -> Result<()> {
        loop {
            match look().await? {
                0 => return Ok(()),
                _ => self.pause(("", None), what, "lvol/NAME").await?,
            }
        }
    }
}
