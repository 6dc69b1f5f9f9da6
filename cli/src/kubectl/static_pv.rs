//! A PersistentVolume made by hand for a lvol that exists: pure.

use super::objects::Name;
use coppice_kube_api::{Kind, Lvol, TOPOLOGY_NODE};
use coppice_proto::capability::DRIVER_NAME;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use serde_json::{Value, json};

/// What the lvol does not say of itself.
#[derive(Default)]
pub struct Wanted<'a> {
    /// The claim that it is for.
    pub claim: Option<Name>,
    /// That claim, if it exists.
    pub there: Option<&'a PersistentVolumeClaim>,
    /// The class, unless the claim names one.
    pub class: Option<&'a str>,
    pub block: bool,
    /// As the drive knows it.
    pub file_system: Option<&'a str>,
}

/// Without `Delete`: whoever wants that says so afterwards, when the claim is bound and the data was seen.
pub fn volume(lvol: &Lvol, wanted: &Wanted) -> Value {
    let spec = wanted.there.and_then(|claim| claim.spec.as_ref());
    let of_claim = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    // A claim that lost its volume goes on looking for it under its old name.
    let name = of_claim(spec.and_then(|spec| spec.volume_name.as_ref())).unwrap_or_else(|| lvol.name_any());
    let class = of_claim(spec.and_then(|spec| spec.storage_class_name.as_ref()));
    let class = class.or_else(|| wanted.class.map(String::from)).unwrap_or_default();
    let access = spec.and_then(|spec| spec.access_modes.clone()).unwrap_or_else(|| vec!["ReadWriteOnce".into()]);
    let mode = of_claim(spec.and_then(|spec| spec.volume_mode.as_ref()));
    let mode = mode.unwrap_or_else(|| if wanted.block { "Block" } else { "Filesystem" }.to_string());
    let mut csi = json!({ "driver": DRIVER_NAME, "volumeHandle": lvol.spec.lvol_uuid });
    if let (Some(file_system), "Filesystem") = (wanted.file_system, mode.as_str()) {
        csi["fsType"] = json!(file_system);
    }
    let mut volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        // The provisioner deletes what it finds to be its own, should the policy become Delete.
        "metadata": { "name": name, "annotations": { "pv.kubernetes.io/provisioned-by": DRIVER_NAME } },
        "spec": {
            "capacity": { "storage": lvol.spec.size },
            "accessModes": access,
            "volumeMode": mode,
            "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": csi,
            "nodeAffinity": { "required": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": TOPOLOGY_NODE, "operator": "In", "values": [lvol.spec.node] }] },
            ] } },
        },
    });
    if let Some(claim) = &wanted.claim {
        volume["spec"]["claimRef"] = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace, "name": claim.name });
        // Only with its UID a claim that was bound before takes the volume for its own.
        if let Some(uid) = wanted.there.and_then(ResourceExt::uid) {
            volume["spec"]["claimRef"]["uid"] = json!(uid);
        }
    }
    volume
}

/// Whether a lvol can have a PersistentVolume.
pub fn can_have_one(lvol: &Lvol) -> bool {
    lvol.spec.kind == Kind::Volume
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lvol() -> Lvol {
        serde_json::from_value(
            json!({ "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol", "metadata": { "name": "pvc-1" },
            "spec": { "requestName": "pvc-1", "kind": "Volume", "size": "1Gi", "node": "a",
                "lvstoreUUID": uuid::Uuid::nil(), "lvolUUID": uuid::Uuid::from_u128(1) } }),
        )
        .expect("a lvol")
    }

    #[test]
    fn a_claim_that_lost_its_volume_gets_it_back() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": { "namespace": "default", "name": "data", "uid": "u" },
            "spec": { "volumeName": "pvc-old", "storageClassName": "coppice", "accessModes": ["ReadWriteOncePod"],
                "volumeMode": "Block" },
        }))
        .expect("a claim");
        let claimed = Some(Name::new("default", "data"));
        let wanted = Wanted { claim: claimed, there: Some(&claim), file_system: Some("ext4"), ..Wanted::default() };
        let made = volume(&lvol(), &wanted);
        assert_eq!((&made["metadata"]["name"], &made["spec"]["claimRef"]["uid"]), (&json!("pvc-old"), &json!("u")));
        assert_eq!(made["spec"]["accessModes"], json!(["ReadWriteOncePod"]));
        assert_eq!((&made["spec"]["volumeMode"], &made["spec"]["csi"]["fsType"]), (&json!("Block"), &Value::Null));
        assert_eq!(made["spec"]["storageClassName"], "coppice");
    }

    #[test]
    fn a_volume_for_a_claim_that_is_still_to_come() {
        let claim = Some(Name::new("default", "new"));
        let made = volume(&lvol(), &Wanted { claim, class: Some("x"), file_system: Some("xfs"), ..Wanted::default() });
        assert_eq!((&made["metadata"]["name"], &made["spec"]["storageClassName"]), (&json!("pvc-1"), &json!("x")));
        assert_eq!(
            (&made["spec"]["volumeMode"], &made["spec"]["csi"]["fsType"]),
            (&json!("Filesystem"), &json!("xfs"))
        );
        assert_eq!(made["spec"]["claimRef"]["uid"], Value::Null);
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        let parsed: Result<k8s_openapi::api::core::v1::PersistentVolume, _> = serde_json::from_value(made);
        assert!(parsed.is_ok(), "{parsed:?}");
    }
}
