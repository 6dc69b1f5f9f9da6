//! Who of the replicas does what only one should do: the holder of a Lease.
//!
//! The holder renews it; one that has not been renewed for its duration, by our own clock since we saw it change, may be
//! taken. Every write carries the resource version that was read, so of two only one succeeds. What is done under it is
//! harmless if done twice: a holder that hangs and wakes up does not know yet that it is none.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::time::Duration;
use tokio::time::Instant;

const NAME: &str = "coppice-controller";
/// After how long a holder counts as dead.
const DURATION_SECONDS: i32 = 15;
/// How often it is renewed, or tried for.
pub const RENEW_SECONDS: u64 = 5;

pub struct Leadership {
    api: Api<Lease>,
    me: String,
    /// The resource version last seen, and when it was first seen.
    seen: Option<(String, Instant)>,
}

impl Leadership {
    pub fn new(client: Client, namespace: &str, me: String) -> Leadership {
        Leadership { api: Api::namespaced(client, namespace), me, seen: None }
    }

    /// Renews or takes the lease if it can be had. Whether it is ours now.
    pub async fn hold(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(jiff::Timestamp::now());
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let spec = self.spec(LeaseSpec::default(), &now);
            let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec) };
            return settled(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => Instant::now(),
        };
        self.seen = Some((version, since));
        if !may_take(&spec, &self.me, since.elapsed()) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(spec, &now));
        settled(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    /// Lets another replica have it at once.
    pub async fn give_up(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
        match lease.spec.as_mut() {
            Some(spec) if spec.holder_identity.as_deref() == Some(&self.me) => spec.holder_identity = None,
            _ => return Ok(()),
        }
        settled(self.api.replace(NAME, &PostParams::default(), &lease).await).map(|_| ())
    }

    fn spec(&self, old: LeaseSpec, now: &MicroTime) -> LeaseSpec {
        let ours = old.holder_identity.as_deref() == Some(&self.me);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            acquire_time: if ours { old.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now.clone()),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..LeaseSpec::default()
        }
    }
}

fn may_take(spec: &LeaseSpec, me: &str, unchanged: Duration) -> bool {
    let duration = u64::try_from(spec.lease_duration_seconds.unwrap_or(DURATION_SECONDS)).unwrap_or(0);
    match spec.holder_identity.as_deref() {
        None | Some("") => true,
        Some(holder) => holder == me || unchanged >= Duration::from_secs(duration),
    }
}

/// Another replica that was quicker is no error.
fn settled(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_old() {
        let of = |holder: Option<&str>| LeaseSpec {
            holder_identity: holder.map(String::from),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let after = Duration::from_secs;
        assert!(may_take(&of(None), "me", after(0)));
        assert!(may_take(&of(Some("")), "me", after(0)));
        assert!(may_take(&of(Some("me")), "me", after(0)));
        assert!(!may_take(&of(Some("other")), "me", after(14)));
        assert!(may_take(&of(Some("other")), "me", after(15)));
    }
}
