//! Condition types and reasons, and how a condition is set.
//!
//! People and alerts match these strings, also as reasons of Events: none is ever renamed or given another meaning.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use std::fmt;

/// An enum whose variants are their own text.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant),)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl From<$name> for &'static str {
            fn from(word: $name) -> &'static str {
                word.as_str()
            }
        }
    };
}

words! {
    /// Condition types of a `Lvstore`.
    LvstoreCondition {
        /// Open and in use.
        Ready,
        /// The device fails requests: nothing is acknowledged as durable until the store is reopened.
        Failing,
        /// The store is not on its device: the drive is gone, swapped or blank.
        Lost,
        /// The store belongs to another cluster, or was made outside Kubernetes, and waits for `spec.adopt`.
        Foreign,
    }
}

words! {
    /// Condition types of a `Lvol`.
    LvolCondition {
        /// Exists and can be staged.
        Ready,
        /// Was created and is not there any more. It is never created again.
        Lost,
        /// Reads from another node, until all its data is here.
        Dependent,
        /// The other node cannot be reached; what is here can be read and written.
        Degraded,
        /// The size that is asked for cannot be had.
        ResizeFailed,
    }
}

words! {
    /// Why a condition of a `Lvstore` is what it is.
    LvstoreReason {
        /// Ready: the store is open.
        Open,
        /// Not ready: the agent is opening it.
        Opening,
        /// Not ready: the agent is formatting a blank device.
        Formatting,
        /// Not ready: there is no such device or file.
        DeviceMissing,
        /// Not ready: the device has partitions.
        DevicePartitioned,
        /// Not ready: the device is mounted.
        DeviceMounted,
        /// Not ready: something else holds the device: LVM, RAID, another process.
        DeviceHeld,
        /// Not ready: the device holds something that is not a lvstore. Nothing is ever formatted that is not blank.
        DeviceNotBlank,
        /// Not ready: the file does not exist and `spec.fileSize` does not say how large to make it.
        FileSizeMissing,
        /// Not ready: another `Lvstore` of this node has the same name or device.
        Duplicate,
        /// Not ready: io_uring is disabled, or the kernel lacks what every export needs.
        HostUnfit,
        /// Not ready: the store does not open.
        OpenFailed,
        /// Not ready, Failing: a request to the device failed.
        DeviceFailed,
        /// Not ready: the device does not answer, or takes very long.
        DeviceStalled,
        /// Open, but nothing in it can change.
        ReadOnly,
        /// Lost: the device is blank, where a store was.
        DeviceBlank,
        /// Lost: there is another store on the device.
        OtherStore,
        /// Lost: the node is no longer part of the cluster.
        NodeGone,
        /// Foreign: the store carries the identity of another cluster.
        OtherCluster,
        /// Foreign: the store was not made by Kubernetes.
        MadeElsewhere,
        /// The condition does not hold, and all is well.
        AsExpected,
    }
}

words! {
    /// Why a condition of a `Lvol` is what it is.
    LvolReason {
        /// Ready: it is there.
        Available,
        /// Not ready: the agent is creating it.
        Creating,
        /// Not ready: the agent is removing it, because the controller asked.
        Removing,
        /// Not ready: the agent of its node does not answer.
        NodeUnavailable,
        /// Not ready: its lvstore is not open.
        LvstoreNotReady,
        /// Not ready, or not resized: there is no room.
        NoSpace,
        /// Not ready: the source does not exist.
        SourceMissing,
        /// Not ready: the source cannot be reached.
        SourceUnavailable,
        /// Not ready: the source has itself not received all its data yet.
        SourceNotHydrated,
        /// Not ready: creating it failed.
        CreateFailed,
        /// Not ready: its metadata does not check out.
        Damaged,
        /// Lost: it was created, and the lvstore does not have it.
        Missing,
        /// Lost: its lvstore is lost.
        LvstoreLost,
        /// Lost: its node is no longer part of the cluster.
        NodeGone,
        /// Dependent: its data is being copied from another node.
        Hydrating,
        /// Not dependent: all its data is here.
        Hydrated,
        /// Dependent: copying does not advance.
        HydrationStalled,
        /// The object was removed without `reclaim: Delete`; the lvol stays and waits for `kubectl coppice adopt`.
        Orphaned,
        /// Taken over from an object that was removed.
        Adopted,
        /// The condition does not hold, and all is well.
        AsExpected,
    }
}

/// A condition that is true or false from `now` on.
pub fn condition(
    kind: impl Into<&'static str>,
    holds: bool,
    reason: impl Into<&'static str>,
    message: impl Into<String>,
    generation: Option<i64>,
    now: jiff::Timestamp,
) -> Condition {
    Condition {
        type_: kind.into().to_string(),
        status: if holds { "True" } else { "False" }.to_string(),
        reason: reason.into().to_string(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: Time(now),
    }
}

/// Puts `new` among `conditions`; its time is kept unless the status changed. Whether anything changed, so that a status that
/// says nothing new is not written.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) -> bool {
    let Some(old) = conditions.iter_mut().find(|old| old.type_ == new.type_) else {
        conditions.push(new);
        return true;
    };
    if old.status == new.status {
        new.last_transition_time = old.last_transition_time.clone();
    }
    let changed = *old != new;
    *old = new;
    changed
}

/// Whether the condition is there and true.
pub fn is_true(conditions: &[Condition], kind: impl Into<&'static str>) -> bool {
    let kind = kind.into();
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_condition_is_that_of_its_status() {
        let at = |second| jiff::Timestamp::from_second(second).expect("a time");
        let ready =
            |holds, reason: LvolReason, second| condition(LvolCondition::Ready, holds, reason, "", Some(1), at(second));
        let mut all = Vec::new();
        assert!(set_condition(&mut all, ready(false, LvolReason::Creating, 1)));
        assert!(!is_true(&all, LvolCondition::Ready));
        assert!(!set_condition(&mut all, ready(false, LvolReason::Creating, 2)), "nothing new");
        assert!(set_condition(&mut all, ready(false, LvolReason::NoSpace, 3)), "another reason");
        assert_eq!(all[0].last_transition_time, Time(at(1)));
        assert!(set_condition(&mut all, ready(true, LvolReason::Available, 4)));
        assert_eq!((all.len(), &all[0].last_transition_time), (1, &Time(at(4))));
        assert!(is_true(&all, LvolCondition::Ready) && !is_true(&all, LvolCondition::Lost));
    }

    #[test]
    fn reasons_have_the_form_that_kubernetes_asks_for() {
        let words = LvolReason::ALL.iter().map(|word| word.as_str());
        let words = words.chain(LvstoreReason::ALL.iter().map(|word| word.as_str()));
        for word in words {
            assert!(word.len() <= 128 && word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(word.chars().all(|c| c.is_ascii_alphanumeric()), "{word}");
        }
    }
}
