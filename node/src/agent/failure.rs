//! Why the agent could not do something with an object.

use coppice_kube_api::LvstoreReason;
use std::time::Duration;

/// How long the API server may take to answer.
const API_SECONDS_MAX: u64 = 15;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    #[error("the API server has not answered for {API_SECONDS_MAX} s")]
    Late,
    #[error(transparent)]
    Engine(#[from] coppice_engine::Error),
    #[error("the UID of the namespace kube-system is no UUID: {0:?}")]
    Identity(String),
    #[error("the status cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// What has to be in an object cannot be written there.
    #[error("{0}")]
    Unsaid(String),
    /// The device of a lvstore is not used: the status says why.
    #[error("{}", .0.1)]
    Refused(#[from] Refusal),
}

/// Why a device is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: {1}")]
pub struct Refusal(pub LvstoreReason, pub String);

impl Failure {
    /// The object is not as it was when the change was decided.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Failure::Api(kube::Error::Api(status)) if status.code == 409 || status.code == 404)
    }
}

/// Asks the API server, and does not wait for it for ever.
pub async fn ask<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    let answer = tokio::time::timeout(Duration::from_secs(API_SECONDS_MAX), request).await;
    Ok(answer.map_err(|_| Failure::Late)??)
}
