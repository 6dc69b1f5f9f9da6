//! The drawing of trees, for `lvol tree` and `kubectl coppice tree`: pure, from descriptions to lines.
//!
//! A lvol without a parent is a root; below a snapshot stand those that read from it. Whoever has no place (its parent is
//! missing, or a damaged store has a cycle) is drawn as a root: nothing is left out.

use crate::output::{Column, clean, left, right, table};
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

/// A lvol to draw, and what is said of it in words.
pub struct Leaf<'a> {
    pub lvol: &'a LvolInfo,
    pub name: String,
    pub state: String,
    /// Where the lvol reads what it does not own; `None`: from its ancestors in the tree.
    pub inherits: Option<String>,
    /// Nothing is known but that others read from it: sizes are left open.
    pub unknown: bool,
    /// For the columns behind the common ones.
    pub more: Vec<String>,
}

impl<'a> Leaf<'a> {
    fn of(lvol: &'a LvolInfo) -> Leaf<'a> {
        let exports = if lvol.exports.is_empty() { "–".to_string() } else { lvol.exports.join(" ") };
        Leaf {
            lvol,
            name: name(lvol).to_string(),
            state: state_of(lvol),
            inherits: match lvol.kind {
                LvolKind::EsnapClone => {
                    Some(lvol.parent.map_or_else(|| "from outside".to_string(), |id| format!("from {id}")))
                }
                _ => None,
            },
            unknown: false,
            more: vec![exports],
        }
    }
}

/// A store's space in bytes.
pub struct Space<'a> {
    pub name: &'a str,
    pub used: u64,
    /// Part of `used`.
    pub hidden: u64,
    /// `None`: what is reserved is part of `used`, nobody knows how much.
    pub reserved: Option<u64>,
    pub free: u64,
    pub total: u64,
}

/// One lvol, where it stands, and how many clusters its ancestors own.
struct Node<'a> {
    leaf: &'a Leaf<'a>,
    /// For each level, the root's left out: whether it is the last of its parent's children.
    last: Vec<bool>,
    above: u64,
}

/// Every store with its tree and its space. `lvols` in order of creation.
pub fn draw(stores: &[StoreInfo], lvols: &[LvolInfo], colour: bool) -> String {
    let drawn: Vec<String> = stores
        .iter()
        .map(|store| {
            let own: Vec<Leaf> = lvols.iter().filter(|l| l.lvstore == store.name).map(Leaf::of).collect();
            let mut lines =
                if own.is_empty() { vec!["no lvols".to_string()] } else { rows(&own, &[left("EXPORTS")], colour) };
            lines.extend([String::new(), space(&space_of(store)), String::new()]);
            lines.join("\n")
        })
        .collect();
    drawn.join("\n")
}

/// The lines of one store's tree; the first has the headings. `leaves` in order of creation; `more` are the columns that
/// follow the common ones.
pub fn rows(leaves: &[Leaf], more: &[Column], colour: bool) -> Vec<String> {
    let nodes = arrange(leaves);
    let deep = nodes.iter().any(|n| n.last.len() > DEEP);
    let common =
        [left("NAME"), left("KIND"), right("SIZE"), right("OWN"), right("OWN%"), right("INHERITS"), left("STATE")];
    let columns = [&common, more].concat();
    let mut lines = table(&columns, nodes.iter().map(|node| cells(node, deep)));
    if colour {
        for (n, line) in lines.iter_mut().enumerate() {
            let paint = match n.checked_sub(1).and_then(|n| nodes.get(n)).map(|node| node.leaf.lvol.state) {
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
fn arrange<'a>(leaves: &'a [Leaf<'a>]) -> Vec<Node<'a>> {
    let known: HashSet<_> = leaves.iter().map(|l| l.lvol.uuid).collect();
    let mut children: HashMap<_, Vec<&Leaf>> = HashMap::new();
    let mut roots = Vec::new();
    for leaf in leaves {
        match leaf.lvol.parent.filter(|p| known.contains(p)) {
            Some(parent) => children.entry(parent).or_default().push(leaf),
            None => roots.push(leaf),
        }
    }
    let mut drawn = HashSet::new();
    let mut nodes = Vec::new();
    // A second round for those that no root leads to: each is taken as a root if it is still missing.
    for root in roots.into_iter().chain(leaves) {
        let mut stack = vec![Node { leaf: root, last: Vec::new(), above: 0 }];
        while let Some(node) = stack.pop() {
            let lvol = node.leaf.lvol;
            if !drawn.insert(lvol.uuid) {
                continue;
            }
            let below = children.get(&lvol.uuid).map_or(&[][..], Vec::as_slice);
            // Of one that is unknown, anything may be read.
            let own = if node.leaf.unknown { u64::MAX } else { lvol.allocated_clusters };
            let above = node.above.saturating_add(own);
            for (n, child) in below.iter().enumerate().rev() {
                let mut last = node.last.clone();
                last.push(n + 1 == below.len());
                stack.push(Node { leaf: child, last, above });
            }
            nodes.push(node);
        }
    }
    nodes
}

fn cells(node: &Node, deep: bool) -> Vec<String> {
    let (leaf, lvol) = (node.leaf, node.leaf.lvol);
    let own = bytes(lvol, lvol.allocated_clusters);
    let known = |text: String| if leaf.unknown { "–".to_string() } else { text };
    let mut cells = vec![
        format!("{}{}", branches(&node.last, deep), leaf.name),
        kind(lvol).to_string(),
        known(human(lvol.size)),
        known(human(own)),
        known(percent(own, lvol.size)),
        inherits(node),
        leaf.state.clone(),
    ];
    cells.extend(leaf.more.iter().cloned());
    cells
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
    let lvol = node.leaf.lvol;
    if let Some(from) = &node.leaf.inherits {
        return from.clone();
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

/// The state, with how far a hydration is.
pub fn state_of(lvol: &LvolInfo) -> String {
    match (lvol.state, lvol.hydration) {
        (LvolState::Hydrating, Some(h)) if h.total_bytes > 0 => {
            let done = h.total_bytes.saturating_sub(h.remaining_bytes).saturating_mul(100) / h.total_bytes;
            format!("hydrating {done}%")
        }
        (state_now, _) => state(state_now).to_string(),
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

fn space_of(store: &StoreInfo) -> Space<'_> {
    let size = |clusters: u64| clusters.saturating_mul(u64::from(store.cluster_size));
    Space {
        name: &store.name,
        used: size(store.metadata_clusters + store.allocated_clusters + store.quarantined_clusters),
        hidden: store.hidden_bytes,
        reserved: Some(size(store.reserved_clusters)),
        free: size(store.free_clusters),
        total: size(store.total_clusters),
    }
}

/// The store's space as one line: used, reserved, free.
pub fn space(space: &Space) -> String {
    // Where the parts end, so that they fill the bar together; what is there at all is seen.
    let (width, total) = (u128::from(BAR_WIDTH), u128::from(space.total.max(1)));
    let ends = |bytes: u64| (u128::from(bytes) * width).div_ceil(total).min(width);
    let (full, promised) = (ends(space.used), ends(space.used.saturating_add(space.reserved.unwrap_or(0))));
    let bar: String = (0..width)
        .map(|n| match n {
            n if n < full => '█',
            n if n < promised => '▒',
            _ => '░',
        })
        .collect();
    let hidden = match space.hidden {
        0 => String::new(),
        bytes => format!(" ({} by hidden snapshots)", human(bytes)),
    };
    let reserved = match space.reserved {
        Some(bytes) => format!("used{hidden}, {} reserved", human(bytes)),
        None => format!("used or reserved{hidden}"),
    };
    format!(
        "{}  {bar}  {} {reserved}, {} free of {}",
        clean(space.name),
        human(space.used),
        human(space.free),
        human(space.total),
    )
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
