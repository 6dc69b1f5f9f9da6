//! The drawing of `lvol tree`: pure, from descriptions to lines.
//!
//! A lvol without a parent is a root; below a snapshot stand those that read from it. Whoever has no place (its parent is
//! missing, or a damaged store has a cycle) is drawn as a root: nothing is left out.

use crate::output::{clean, left, right, table};
use crate::size::human;
use coppice_engine::{LvolInfo, LvolKind, LvolState, StoreInfo};
use std::collections::{HashMap, HashSet};

/// Characters of the bar that shows a store's space.
const BAR_WIDTH: u64 = 32;
/// Deeper trees are drawn with less indentation.
const DEEP: usize = 8;

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// One lvol, where it stands, and how many clusters its ancestors own.
struct Node<'a> {
    lvol: &'a LvolInfo,
    /// For each level, the root's left out: whether it is the last of its parent's children.
    last: Vec<bool>,
    above: u64,
}

/// Every store with its tree and its space. `lvols` in order of creation.
pub fn draw(stores: &[StoreInfo], lvols: &[LvolInfo], colour: bool) -> String {
    let drawn: Vec<String> = stores
        .iter()
        .map(|store| {
            let own: Vec<&LvolInfo> = lvols.iter().filter(|l| l.lvstore == store.name).collect();
            let mut lines = if own.is_empty() { vec!["no lvols".to_string()] } else { rows(&own, colour) };
            lines.extend([String::new(), space(store), String::new()]);
            lines.join("\n")
        })
        .collect();
    drawn.join("\n")
}

fn rows(lvols: &[&LvolInfo], colour: bool) -> Vec<String> {
    let nodes = arrange(lvols);
    let deep = nodes.iter().any(|n| n.last.len() > DEEP);
    let columns = [
        left("NAME"),
        left("KIND"),
        right("SIZE"),
        right("OWN"),
        right("OWN%"),
        right("INHERITS"),
        left("STATE"),
        left("EXPORTS"),
    ];
    let mut lines = table(&columns, nodes.iter().map(|node| cells(node, deep)));
    if colour {
        for (n, line) in lines.iter_mut().enumerate() {
            let paint = match n.checked_sub(1).and_then(|n| nodes.get(n)).map(|node| node.lvol.state) {
                None => BOLD,
                Some(LvolState::Hidden) => DIM,
                Some(LvolState::Damaged | LvolState::Degraded) => RED,
                Some(LvolState::Ok | LvolState::Hydrating) => continue,
            };
            *line = format!("{paint}{line}{PLAIN}");
        }
    }
    lines
}

/// The lvols in the order of drawing.
fn arrange<'a>(lvols: &[&'a LvolInfo]) -> Vec<Node<'a>> {
    let known: HashSet<_> = lvols.iter().map(|l| l.uuid).collect();
    let mut children: HashMap<_, Vec<&LvolInfo>> = HashMap::new();
    let mut roots = Vec::new();
    for lvol in lvols {
        match lvol.parent.filter(|p| known.contains(p)) {
            Some(parent) => children.entry(parent).or_default().push(lvol),
            None => roots.push(*lvol),
        }
    }
    let mut drawn = HashSet::new();
    let mut nodes = Vec::new();
    // A second round for those that no root leads to: each is taken as a root if it is still missing.
    for root in roots.into_iter().chain(lvols.iter().copied()) {
        let mut stack = vec![Node { lvol: root, last: Vec::new(), above: 0 }];
        while let Some(node) = stack.pop() {
            if !drawn.insert(node.lvol.uuid) {
                continue;
            }
            let below = children.get(&node.lvol.uuid).map_or(&[][..], Vec::as_slice);
            let above = node.above.saturating_add(node.lvol.allocated_clusters);
            for (n, child) in below.iter().enumerate().rev() {
                let mut last = node.last.clone();
                last.push(n + 1 == below.len());
                stack.push(Node { lvol: child, last, above });
            }
            nodes.push(node);
        }
    }
    nodes
}

fn cells(node: &Node, deep: bool) -> Vec<String> {
    let lvol = node.lvol;
    let own = bytes(lvol, lvol.allocated_clusters);
    vec![
        format!("{}{}", branches(&node.last, deep), name(lvol)),
        kind(lvol).to_string(),
        human(lvol.size),
        human(own),
        percent(own, lvol.size),
        inherits(node),
        state(lvol.state).to_string(),
        if lvol.exports.is_empty() { "–".to_string() } else { lvol.exports.join(" ") },
    ]
}

/// A deleted snapshot has a name that says nothing to a person.
fn name(lvol: &LvolInfo) -> &str {
    let given = lvol.state != LvolState::Hidden || !lvol.name.starts_with(".deleted-");
    if given { &lvol.name } else { "(deleted)" }
}

fn branches(last: &[bool], deep: bool) -> String {
    let (go_on, gap, more, end) =
        if deep { ("│ ", "  ", "├ ", "└ ") } else { ("│  ", "   ", "├─ ", "└─ ") };
    let Some((own, above)) = last.split_last() else { return String::new() };
    let mut drawn: String = above.iter().map(|last| if *last { gap } else { go_on }).collect();
    drawn.push_str(if *own { end } else { more });
    drawn
}

fn bytes(lvol: &LvolInfo, clusters: u64) -> u64 {
    clusters.saturating_mul(u64::from(lvol.cluster_size))
}

/// At most what the ancestors own, and at most what the lvol does not own itself.
fn inherits(node: &Node) -> String {
    let lvol = node.lvol;
    if lvol.kind == LvolKind::EsnapClone {
        return lvol.parent.map_or_else(|| "from outside".to_string(), |id| format!("from {id}"));
    }
    let room = lvol.size.saturating_sub(bytes(lvol, lvol.allocated_clusters));
    match bytes(lvol, node.above).min(room) {
        0 => "–".to_string(),
        most => format!("≤ {}", human(most)),
    }
}

/// `thick clone` and the like.
pub fn kind(lvol: &LvolInfo) -> &'static str {
    match (lvol.kind, lvol.thin) {
        (LvolKind::Lvol, true) => "lvol",
        (LvolKind::Lvol, false) => "thick lvol",
        (LvolKind::Snapshot, _) => "snapshot",
        (LvolKind::Clone, true) => "clone",
        (LvolKind::Clone, false) => "thick clone",
        (LvolKind::EsnapClone, true) => "esnap clone",
        (LvolKind::EsnapClone, false) => "thick esnap clone",
    }
}

pub fn state(state: LvolState) -> &'static str {
    match state {
        LvolState::Ok => "ok",
        LvolState::Degraded => "degraded",
        LvolState::Hydrating => "hydrating",
        LvolState::Hidden => "hidden",
        LvolState::Damaged => "damaged",
    }
}

pub fn percent(part: u64, whole: u64) -> String {
    match (u128::from(part) * 100).checked_div(u128::from(whole)) {
        None => "–".to_string(),
        Some(0) if part > 0 => "<1%".to_string(),
        Some(n) => format!("{n}%"),
    }
}

/// The store's space as one line: used, reserved, free.
fn space(store: &StoreInfo) -> String {
    let size = |clusters: u64| clusters.saturating_mul(u64::from(store.cluster_size));
    let used = store.metadata_clusters + store.allocated_clusters + store.quarantined_clusters;
    // Where the parts end, so that they fill the bar together; what is there at all is seen.
    let ends = |clusters: u64| (clusters * BAR_WIDTH).div_ceil(store.total_clusters.max(1)).min(BAR_WIDTH);
    let (full, promised) = (ends(used), ends(used + store.reserved_clusters));
    let bar: String = (0..BAR_WIDTH)
        .map(|n| match n {
            n if n < full => '█',
            n if n < promised => '▒',
            _ => '░',
        })
        .collect();
    let hidden = match store.hidden_bytes {
        0 => String::new(),
        bytes => format!(" ({} by hidden snapshots)", human(bytes)),
    };
    format!(
        "{}  {bar}  {} used{hidden}, {} reserved, {} free of {}",
        clean(&store.name),
        human(size(used)),
        human(size(store.reserved_clusters)),
        human(size(store.free_clusters)),
        human(size(store.total_clusters)),
    )
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
