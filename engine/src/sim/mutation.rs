//! Deliberate bugs. A test switches one on and must then see the simulator fail; without the feature `sim` every
//! `active` is `false` at compile time and the code is gone.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    None = 0,
    /// The journal record is not flushed before it is acknowledged.
    SkipFlush,
    /// The changes of a commit are collected after its data flush.
    CutAfterFlush,
    /// The map is published before the data write of a new cluster has completed.
    PublishEarly,
    /// Freed clusters return to the pool before the free is durable.
    FreeBeforeCommit,
    /// Freed clusters return to the pool before old reads of them have ended.
    ReuseBeforeReadsEnd,
    /// A snapshot swaps the map on one shard after the other.
    SwapShardByShard,
    /// A merge gives the parent's clusters up in a transaction before the child takes them.
    MergeWrongOrder,
    /// The super block is rewritten without its second copy.
    LoseSuperCopy,
    /// The untouched rest of a new cluster is not zeroed.
    SkipZeroFill,
    /// A copy on write does not wait for older writes to its source.
    CopyTooEarly,
    /// Home pages are written before their journal record is durable.
    HomeBeforeJournal,
    /// The journal's tail moves before the home pages are flushed.
    TailBeforeHome,
    /// A pin is acknowledged before it is durable.
    PinNotDurable,
    /// A snapshot that is deleted loses its pins.
    UnpinWithDelete,
    /// A deleted snapshot is merged or removed although it is pinned.
    MergePinned,
    /// An external parent counts as given up before that is durable.
    GiveUpParentEarly,
    /// What an external parent that is away does not answer reads zero.
    ZeroesForAway,
    /// What an external parent calls data is left out by hydration, and the link cut.
    HydrationLeavesOut,
}

#[cfg(feature = "sim")]
thread_local! {
    static ACTIVE: std::cell::Cell<Mutation> = const { std::cell::Cell::new(Mutation::None) };
}

/// Switches a bug on for this thread (the simulator runs everything in one thread).
#[cfg(feature = "sim")]
pub fn set(mutation: Mutation) {
    ACTIVE.with(|a| a.set(mutation));
}

#[cfg(feature = "sim")]
#[inline]
pub fn active(mutation: Mutation) -> bool {
    ACTIVE.with(|a| a.get()) == mutation
}

#[cfg(not(feature = "sim"))]
#[inline(always)]
pub const fn active(_mutation: Mutation) -> bool {
    false
}
