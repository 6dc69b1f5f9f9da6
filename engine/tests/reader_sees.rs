//! Proof that the independent reader sees: stores of SPDK with one deliberate damage each, CRCs repaired, must be
//! reported with exactly the rules that the damage breaks. A judge that finds nothing wrong is only worth something if
//! it would have found it.

mod patient;
mod reader;
mod unpack;

use anyhow::{Context, Result, ensure};
use patient::{Patient, descriptor_end, get_u32, put_u32, xattr};
use reader::{Options, RULES, Reader};
use std::collections::BTreeSet;

type Damage = fn(&mut Patient) -> Result<()>;

/// What was done, how, and the rules that are broken by it.
struct Case(&'static str, Damage, &'static [&'static str]);

/// Thick lvol without parent, snapshots or clones.
const THICK: &str = "renamed é/x";

const CLEAN: &[Case] = &[
    // Super block.
    Case("version 2", |p| p.super_u32(8, 2), &["super.version"]),
    Case("length 4095", |p| p.super_u32(12, 4095), &["super.length"]),
    Case("not closed", |p| p.super_u32(16, 0), &["super.clean"]),
    Case("half clean", |p| p.super_u32(16, 2), &["super.clean"]),
    Case(
        "our own type",
        |p| p.edit_super(|s| s[56..72].copy_from_slice(b"COPPICE\0\0\0\0\0\0\0\0\0")),
        &["super.bstype"],
    ),
    Case("type not padded by zeroes", |p| p.edit_super(|s| s[71] = 1), &["super.bstype"]),
    Case("no size", |p| p.edit_super(|s| s[80..88].fill(0)), &["super.size"]),
    Case("no page size", |p| p.super_u32(92, 0), &["super.md-page-size"]),
    Case("other io unit", |p| p.super_u32(88, 512), &["super.io-unit"]),
    Case("no blob id mask", |p| p.super_u32(76, 0), &["super.geometry"]),
    Case("no super blob", |p| p.edit_super(|s| s[20..28].fill(0xff)), &["super-blob"]),
    // Masks.
    Case("cluster bit too many", |p| flip(p, 40, 60), &["mask.clusters"]),
    Case(
        "cluster bit missing",
        |p| p.cluster(THICK).and_then(|c| flip(p, 40, c)),
        &["mask.clusters", "blob.unopenable"],
    ),
    Case("page bit too many", |p| flip(p, 32, 62), &["mask.pages"]),
    Case("page bit missing", |p| p.extent_page(THICK).and_then(|page| flip(p, 32, page)), &["mask.pages"]),
    Case("blob id bit too many", |p| flip(p, 72, 62), &["mask.blobids", "page.crc"]),
    Case("blob id bit missing", |p| p.root(THICK).and_then(|page| flip(p, 72, page)), &["mask.blobids"]),
    Case("bit behind a mask's end", |p| flip(p, 32, 64), &["mask.pages"]),
    Case("cluster mask as long as its area", |p| mask_header(p, 40, 1, (4096 - 5) * 8), &["mask.clusters"]),
    Case("blob id mask too short", |p| mask_header(p, 72, 1, 63), &["mask.blobids"]),
    Case("page mask of another type", |p| mask_header(p, 32, 0, 2), &["mask.pages"]),
    // Chains and descriptors.
    Case(
        "root with another id",
        |p| edit_u32(p, THICK, 0, 3),
        &["page.chain", "mask.blobids", "mask.pages", "mask.clusters"],
    ),
    Case("root without CRC", raw_root, &["page.crc", "mask.blobids", "mask.pages", "mask.clusters"]),
    Case("next out of range", |p| edit_u32(p, THICK, 4088, 64), &["page.chain"]),
    Case("next is itself", |p| p.root(THICK).and_then(|r| edit_u32(p, THICK, 4088, r)), &["page.chain"]),
    Case("next is an extent page", |p| p.extent_page(THICK).and_then(|e| edit_u32(p, THICK, 4088, e)), &["page.chain"]),
    Case("new descriptor type", |p| p.append(THICK, 7, b"news"), &["desc.unknown"]),
    Case("second flags", |p| p.append(THICK, 3, &flags(4)), &["desc.flags-first"]),
    Case("flags of another length", |p| p.append(THICK, 3, &[0; 23]), &["desc.flags-first", "desc.length"]),
    Case("xattr lengths do not add up", |p| p.append(THICK, 2, b"\x02\0\x02\0ab"), &["desc.length"]),
    Case("descriptor leaves the page", |p| edit_end(p, 1, 4000), &["desc.overrun"]),
    Case("byte behind the descriptors", |p| edit_end(p, 100, 1), &["desc.tail"]),
    Case("table and runs", |p| p.append("empty_thin", 1, &[0, 0, 0, 0, 1, 0, 0, 0]), &["desc.layout"]),
    Case("runs of nothing", |p| p.append("zero_size", 1, &[0; 8]), &["desc.layout", "desc.length"]),
    Case("extents in a chain", |p| p.append(THICK, 6, &[0; 8]), &["desc.place"]),
    // Flags, xattrs, names.
    Case("private incompatible flag", |p| p.flip_flags(THICK, 24, 1), &["flags.private"]),
    Case("unknown data_ro flag", |p| p.flip_flags(THICK, 29, 2), &["flags.unknown"]),
    Case("unknown md_ro flag", |p| p.flip_flags(THICK, 37, 4), &["flags.unknown"]),
    Case("flag without internal xattr", |p| p.flip_flags(THICK, 21, 2), &["flags.internal-xattr"]),
    Case("internal xattr without flag", |p| p.flip_flags("clone1", 21, 2), &["flags.internal-xattr"]),
    Case("table without flag", |p| p.flip_flags(THICK, 21, 4), &["flags.extent-table"]),
    Case("xattr twice", |p| p.append(THICK, 2, &xattr("name", b"again\0")), &["xattr.duplicate"]),
    Case("snapshot marker", |p| marker(p, "snap2", "SNAPTMP", "clone1"), &["marker.left"]),
    Case("deletion marker", |p| marker(p, "clone1", "SNAPRM", "clone2"), &["marker.left"]),
    Case("no name", |p| p.replace(THICK, b"\x04\0\x0d\0name", b"\x04\0\x0d\0nome"), &["name.missing"]),
    Case("empty name", |p| rename(p, "clone1", b"\0lone1\0"), &["name.invalid"]),
    Case("name of 64 bytes without NUL", |p| p.edit_root("clone1", long_name), &["name.invalid"]),
    Case("name of another lvol", |p| rename(p, "clone1", b"clone2\0"), &["name.duplicate"]),
    Case("UUID of another lvol", |p| copy_uuid(p, "clone1", "clone2"), &["uuid.duplicate"]),
    Case("UUID in capitals", |p| edit_uuid(p, THICK, |u| u.make_ascii_uppercase()), &["uuid.invalid"]),
    Case("UUID without NUL", |p| edit_uuid(p, THICK, |u| u[36] = b'0'), &["uuid.invalid"]),
    // Parents.
    Case("parent that is not there", |p| p.set_snap("clone1", 0x1_0000_003e), &["parent.missing", "blob.unopenable"]),
    Case("the super blob as parent", |p| p.set_snap("clone1", 0x1_0000_0000), &["parent.missing"]),
    Case("own parent", |p| p.set_snap("snap2", p.id("snap2")?), &["parent.cycle", "blob.unopenable"]),
    Case("writable parent", |p| p.flip_flags("snap2", 29, 1), &["parent.not-read-only"]),
    Case("parent does not open", |p| p.flip_flags("thicksnap", 24, 1), &["flags.private", "blob.unopenable"]),
    Case("clone that is not thin", |p| p.flip_flags("untouched_clone", 21, 1), &["map.thick-hole", "parent.thin"]),
    Case("SNAP of another length", |p| short_snap(p, "clone1"), &["parent.snap", "blob.unopenable"]),
    Case("external flag without id", |p| p.flip_flags("clone1", 21, 8), &["parent.esnap", "blob.unopenable"]),
    // Extent table and extent pages.
    Case("table longer than its pages", |p| table(p, "empty_thin", 0, 513), &["ep.count", "ep.length"]),
    Case("entry without a page more", |p| table(p, "empty_thin", 12, 2), &["ep.count"]),
    Case("assigned entry for two pages", |p| table(p, THICK, 12, 2), &["table.num-pages", "ep.count"]),
    Case("table parts disagree", |p| p.append("zero_size", 5, &9u64.to_le_bytes()), TABLE_PARTS),
    Case("extent page twice", two_tables, &["page.shared", "map.shared", "ep.length", "mask.pages", "mask.clusters"]),
    Case(
        "page number out of range",
        |p| table(p, THICK, 8, 64),
        &["ep.invalid", "ep.length", "mask.pages", "mask.clusters"],
    ),
    Case("extent page without CRC", raw_extent_page, &["ep.invalid", "ep.length", "mask.clusters"]),
    Case("extent page with sequence 1", |p| ep_u32(p, 8, 1), &["ep.invalid", "ep.length", "mask.clusters"]),
    Case("extent page without entries", |p| ep_u32(p, 17, 4), &["ep.invalid", "ep.length", "mask.clusters"]),
    Case("a length behind the extents", |p| ep_u32(p, 30, 9), &["ep.invalid", "ep.length", "mask.clusters"]),
    Case("a type behind the extents", |p| p.edit_extent_page(THICK, |e| e[29] = 2), &["ep.tail"]),
    Case("a byte far behind the extents", |p| p.edit_extent_page(THICK, |e| e[4000] = 2), &["ep.tail"]),
    Case("extent page with a next", |p| ep_u32(p, 4088, 5), &["ep.next"]),
    Case("extent page like a root", ep_like_root, EP_LIKE_ROOT),
    Case("extent page starts elsewhere", |p| ep_u32(p, 21, 512), &["ep.start"]),
    Case("extent page too short", |p| ep_length(p, -4), &["ep.length"]),
    Case("extent page too long", |p| ep_length(p, 4), &["ep.length"]),
    Case(
        "extent page over page 0",
        ep_over_page0,
        &["ep.page0", "super-blob", "page.chain", "mask.blobids", "mask.pages"],
    ),
    // Clusters.
    Case("cluster of another lvol", |p| p.map_first(THICK, p.cluster("thicksnap")?), &["map.shared", "mask.clusters"]),
    Case("thick with a hole", |p| p.map_first(THICK, 0), &["map.thick-hole", "mask.clusters"]),
    Case("cluster behind the end", |p| p.map_first(THICK, 64), &["map.range", "mask.clusters"]),
    Case("more entries than clusters", overcommit, &["map.sum", "map.shared"]),
];

const TABLE_PARTS: &[&str] = &["table.num-clusters", "ep.count", "ep.length"];

/// The page is then also taken for the root of one more blob.
const EP_LIKE_ROOT: &[&str] =
    &["ep.like-root", "page.shared", "desc.flags-first", "desc.place", "name.missing", "uuid.invalid", "mask.blobids"];

/// The rest of the extent table is lost with the page, and the child does not open either.
const SECOND_PAGE: &[&str] = &["page.chain", "blob.unopenable", "ep.count", "ep.length", "mask.pages", "mask.clusters"];
const SECOND_PAGE_CRC: &[&str] =
    &["page.crc", "blob.unopenable", "ep.count", "ep.length", "mask.pages", "mask.clusters"];

const BIG: &[Case] = &[
    Case("cluster inside the metadata", |p| p.map_first("thick5g", 1), &["map.metadata", "mask.clusters"]),
    Case("second page with another sequence", |p| chain_page(p, 8, 7), SECOND_PAGE),
    Case("second page of another blob", |p| chain_page(p, 0, 7), SECOND_PAGE),
    Case("second page without CRC", raw_chain_page, SECOND_PAGE_CRC),
    Case("extent pages exchanged", swap_extent_pages, &["ep.start"]),
];

const ESNAP: &[Case] = &[
    Case("external id without flag", |p| p.flip_flags("ec_untouched", 21, 8), &["parent.esnap"]),
    Case("external id that is no UUID", |p| p.replace("ec_untouched", b"EXTSNAP1", b"EXTSNAPx"), &["parent.esnap"]),
];

#[test]
fn damaged_stores_are_reported() -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut wrong = String::new();
    for (fixture, cases) in [("i_clean", CLEAN), ("v_big", BIG), ("iii_esnap", ESNAP)] {
        let Some(mut patient) = Patient::new(fixture)? else { return Ok(()) };
        ensure!(patient.healthy.check_spdk_safe().is_empty(), "{fixture} is not healthy");
        for Case(name, damage, expected) in cases {
            let context = || format!("{fixture}, {name}");
            let reader = patient.examine(damage, |_| ()).with_context(context)?.with_context(context)?;
            let errors = reader.check_spdk_safe();
            let found: BTreeSet<&str> = errors.iter().map(|error| rule(error)).collect();
            let expected: BTreeSet<&str> = expected.iter().copied().collect();
            if found != expected {
                wrong += &format!("{fixture}, {name}: expected {expected:?}, reported {errors:#?}\n");
            }
            seen.extend(expected);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let unseen: Vec<_> = RULES.iter().filter(|rule| !seen.contains(*rule)).collect();
    assert!(unseen.is_empty(), "rules that no case breaks: {unseen:?}");
    Ok(())
}

#[test]
fn impossible_super_blocks_are_refused() -> Result<()> {
    let cases = [
        Case("signature", |p| p.edit_super(|s| s[0] = b's'), &["super.signature"]),
        Case("version", |p| p.super_u32(8, 4), &["super.version"]),
        Case("crc", |p| flip_byte(p, 4000), &["super.crc"]),
        Case("larger than the device", |p| p.super_u32(84, 1), &["super.size"]),
        Case("page size", |p| p.super_u32(92, 6000), &["super.md-page-size"]),
        Case("cluster size", |p| p.super_u32(28, 0), &["super.cluster-size"]),
        Case("io unit", |p| p.super_u32(88, 3), &["super.io-unit"]),
        Case("masks overlap", |p| p.super_u32(40, 1), &["super.geometry"]),
        Case("mask too small", |p| p.super_u32(52, 40000), &["super.geometry"]),
        Case("metadata beyond the end", |p| p.super_u32(48, u32::MAX), &["super.geometry"]),
    ];
    let Some(mut patient) = Patient::new("i_clean")? else { return Ok(()) };
    for Case(name, damage, expected) in cases {
        let error = match patient.examine(damage, |_| ())? {
            Ok(reader) => panic!("{name}: opened\n{}", reader.dump()),
            Err(error) => error.to_string(),
        };
        assert_eq!(rule(&error), expected[0], "{name}: {error}");
    }
    Ok(())
}

#[test]
fn leaks_and_foreign_bytes_can_be_tolerated() -> Result<()> {
    let Some(mut patient) = Patient::new("i_clean")? else { return Ok(()) };
    let leak: Damage = |p| flip(p, 40, 60).and_then(|()| flip(p, 32, 62));
    let reader = patient.examine(leak, |options| options.allow_leaks = true)??;
    assert_eq!(reader.check_spdk_safe(), Vec::<String>::new());
    let missing: Damage = |p| p.cluster(THICK).and_then(|cluster| flip(p, 40, cluster));
    let reader = patient.examine(missing, |options| options.allow_leaks = true)??;
    assert!(!reader.check_spdk_safe().is_empty(), "a missing bit is no leak");

    let reader = patient.examine(|p| p.edit_super(|s| s[4080] = 1), |_| ())??;
    let verdict = reader.check();
    assert_eq!(verdict.errors, Vec::<String>::new());
    assert!(verdict.notes.iter().any(|note| note.contains("reserved area")), "{:?}", verdict.notes);
    Ok(())
}

/// Dirty stores: what section 8.3 calls fatal refuses the store, other damage costs one blob.
#[test]
fn recovery_refuses_what_spdk_refuses() -> Result<()> {
    let Some(mut patient) = Patient::new("ii_dirty")? else { return Ok(()) };
    let fatal = [
        Case("new descriptor type", |p| p.append(THICK, 7, b"news"), &["desc.unknown"]),
        Case("extent page without CRC", raw_extent_page, &["ep.invalid"]),
        Case("extent page without entries", |p| ep_u32(p, 17, 4), &["ep.invalid"]),
        Case("assigned entry for two pages", |p| table(p, THICK, 12, 2), &["table.num-pages"]),
        Case("more entries than clusters", overcommit, &["map.sum"]),
        Case("no name", |p| p.replace(THICK, b"\x04\0\x0d\0name", b"\x04\0\x0d\0nome"), &["name.missing"]),
    ];
    for Case(name, damage, expected) in fatal {
        let error = match patient.examine(damage, |options| options.lenient = false)? {
            Ok(reader) => panic!("{name}: opened\n{}", reader.dump()),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(&format!("{}: ", expected[0])), "{name}: {error}");
    }
    let hidden = [
        Case("extent page starts elsewhere", |p| ep_u32(p, 21, 512), &["ep.start"]),
        Case("private incompatible flag", |p| p.flip_flags(THICK, 24, 1), &["flags.private"]),
        Case("next is itself", |p| p.root(THICK).and_then(|r| edit_u32(p, THICK, 4088, r)), &["page.chain"]),
    ];
    for Case(name, damage, expected) in hidden {
        let reader = patient.examine(damage, |options| options.lenient = false)??;
        let unopenable = reader.unopenable();
        assert!(unopenable.len() == 1 && rule(&unopenable[0].1) == expected[0], "{name}: {unopenable:?}");
        assert_eq!(reader.lvols().len(), patient.healthy.lvols().len() - 1, "{name}");
    }
    Ok(())
}

/// Section 8.4: a snapshot whose creation or deletion was interrupted stays if the other blob is its child.
#[test]
fn interrupted_snapshots_are_resolved() -> Result<()> {
    let Some(mut patient) = Patient::new("ii_dirty")? else { return Ok(()) };
    let count = patient.healthy.lvols().len();
    for name in ["SNAPTMP", "SNAPRM"] {
        let open = |reader: Result<Reader>| reader.with_context(|| name.to_string());
        let strict = |options: &mut Options| options.lenient = false;

        let child = |p: &mut Patient| {
            marker(p, "snap2", name, "clone1")?;
            p.flip_flags("snap2", 29, 1)
        };
        let reader = open(patient.examine(child, strict)?)?;
        assert_eq!(reader.lvols().len(), count, "{name}: {:?}", reader.repairs());
        assert!(reader.lvol("snap2")?.read_only, "{name}");
        let clone = reader.lvol("clone1")?;
        assert_eq!(clone.parent.map(|parent| parent.name).as_deref(), Some("snap2"));

        let stranger = |p: &mut Patient| marker(p, "clone1", name, "clone2");
        let reader = open(patient.examine(stranger, strict)?)?;
        assert_eq!(reader.lvols().len(), count - 1, "{name}: {:?}", reader.repairs());
        assert!(reader.lvol("clone1").is_err(), "{name}");

        let nobody = |p: &mut Patient| p.append("clone1", 4, &xattr(name, &0x1_0000_003eu64.to_le_bytes()));
        let reader = open(patient.examine(nobody, strict)?)?;
        assert_eq!(reader.lvols().len(), count, "{name}: {:?}", reader.repairs());
    }
    Ok(())
}

/// Layouts that the fixtures do not have: runs instead of an extent table, and a store older than the blob id mask.
#[test]
fn old_layouts_are_read() -> Result<()> {
    let Some(mut patient) = Patient::new("i_clean")? else { return Ok(()) };
    let healthy = patient.healthy.lvols();

    let reader = patient.examine(runs_instead_of_table, |_| ())??;
    assert_eq!(reader.check_spdk_safe(), Vec::<String>::new(), "{}", reader.dump());
    for (lvol, before) in reader.lvols().iter().zip(&healthy) {
        assert_eq!(lvol.own_clusters, before.own_clusters, "{}", lvol.name);
        assert_eq!(lvol.num_clusters, before.num_clusters, "{}", lvol.name);
    }

    let version_2 = |p: &mut Patient| {
        p.edit_super(|page| {
            put_u32(page, 8, 2);
            page[72..96].fill(0);
        })
    };
    let reader = patient.examine(version_2, |options| options.lenient = false)??;
    assert!(reader.store().recovered, "masks cannot be trusted without the blob id mask");
    assert_eq!(reader.lvols(), healthy);
    Ok(())
}

/// The thick snapshot and an empty lvol described by runs; the extent page that is no longer needed is freed.
fn runs_instead_of_table(p: &mut Patient) -> Result<()> {
    let freed = p.extent_page("thicksnap")?;
    let clusters: Vec<u32> = p.blob("thicksnap")?.map.values().copied().collect();
    let thick: Vec<u8> = clusters.iter().flat_map(|cluster| [*cluster, 1]).flat_map(u32::to_le_bytes).collect();
    for (lvol, runs) in [("thicksnap", thick.as_slice()), ("empty_thin", &[0, 0, 0, 0, 10, 0, 0, 0])] {
        p.flip_flags(lvol, 21, 4)?;
        p.edit_root(lvol, |page| {
            let table = Patient::find(page, 5)?;
            page[table..4088].fill(0);
            Ok(())
        })?;
        p.append(lvol, 1, runs)?;
    }
    p.raw_page(freed).fill(0);
    flip(p, 32, freed)
}

fn rule(error: &str) -> &str {
    error.split(':').next().unwrap_or_default()
}

/// Flips a bit of the mask whose start the super block has at `field`.
fn flip(p: &mut Patient, field: usize, bit: u32) -> Result<()> {
    let offset = mask_offset(p, field) + 5 + u64::from(bit / 8);
    *p.raw(offset) ^= 1 << (bit % 8);
    Ok(())
}

fn flip_byte(p: &mut Patient, offset: u64) -> Result<()> {
    *p.raw(offset) ^= 1;
    Ok(())
}

fn mask_offset(p: &mut Patient, field: usize) -> u64 {
    u64::from(*p.raw(field as u64)) * 4096
}

/// Sets the mask's type (`at` 0) or the low half of its length (`at` 1).
fn mask_header(p: &mut Patient, field: usize, at: u64, value: u16) -> Result<()> {
    let offset = mask_offset(p, field) + at;
    let [low, high] = value.to_le_bytes();
    *p.raw(offset) = low;
    if at == 1 {
        *p.raw(offset + 1) = high;
    }
    Ok(())
}

fn edit_u32(p: &mut Patient, lvol: &str, at: usize, value: u32) -> Result<()> {
    p.edit_root(lvol, |page| {
        put_u32(page, at, value);
        Ok(())
    })
}

fn raw_root(p: &mut Patient) -> Result<()> {
    let root = p.root(THICK)?;
    p.raw_page(root)[4000] ^= 1;
    Ok(())
}

fn flags(invalid: u8) -> [u8; 24] {
    let mut body = [0; 24];
    body[0] = invalid;
    body
}

/// Writes a number behind the last descriptor of the thick lvol's root, over type and length if `at` is 1.
fn edit_end(p: &mut Patient, at: usize, value: u32) -> Result<()> {
    p.edit_root(THICK, |page| {
        let end = descriptor_end(page);
        put_u32(page, end + at, value);
        Ok(())
    })
}

fn marker(p: &mut Patient, lvol: &str, name: &str, other: &str) -> Result<()> {
    let id = p.id(other)?;
    p.append(lvol, 4, &xattr(name, &id.to_le_bytes()))
}

fn rename(p: &mut Patient, lvol: &str, new: &[u8]) -> Result<()> {
    let value = |name: &[u8]| [b"name".as_slice(), name].concat();
    p.replace(lvol, &value(&[lvol.as_bytes(), b"\0"].concat()), &value(new))
}

fn long_name(page: &mut [u8]) -> Result<()> {
    let at = Patient::find(page, 2)?;
    ensure!(page[at + 9..].starts_with(b"name") && get_u32(page, at + 5) >> 16 == 64, "no padded name");
    page[at + 13..at + 77].fill(b'n');
    Ok(())
}

fn edit_uuid(p: &mut Patient, lvol: &str, edit: fn(&mut [u8])) -> Result<()> {
    let old = uuid(p, lvol)?;
    let mut new = old.clone();
    edit(&mut new);
    p.replace(lvol, &old, &new)
}

fn copy_uuid(p: &mut Patient, to: &str, from: &str) -> Result<()> {
    let (old, new) = (uuid(p, to)?, uuid(p, from)?);
    p.replace(to, &old, &new)
}

fn uuid(p: &Patient, lvol: &str) -> Result<Vec<u8>> {
    Ok(p.blob(lvol)?.xattr(false, "uuid").context("no uuid")?.to_vec())
}

/// The true `SNAP` gets another name, and one of seven bytes is added.
fn short_snap(p: &mut Patient, lvol: &str) -> Result<()> {
    let id = p.blob(lvol)?.id_xattr("SNAP").context("no SNAP")?.to_le_bytes();
    let old = [b"\x10\0\0\0\x04\0\x08\0SNAP".as_slice(), &id].concat();
    let new = [b"\x10\0\0\0\x04\0\x08\0SNAQ".as_slice(), &id].concat();
    p.replace(lvol, &old, &new)?;
    p.append(lvol, 4, &xattr("SNAP", &id[..7]))
}

/// Writes into the body of the root's extent table.
fn table(p: &mut Patient, lvol: &str, at: usize, value: u32) -> Result<()> {
    p.edit_root(lvol, |page| {
        let table = Patient::find(page, 5)?;
        put_u32(page, table + 5 + at, value);
        Ok(())
    })
}

/// The thick lvol's table names an extent page of another lvol.
fn two_tables(p: &mut Patient) -> Result<()> {
    let other = p.extent_page("thicksnap")?;
    table(p, THICK, 8, other)
}

fn raw_extent_page(p: &mut Patient) -> Result<()> {
    let page = p.extent_page(THICK)?;
    p.raw_page(page)[25] ^= 0x40;
    Ok(())
}

fn ep_u32(p: &mut Patient, at: usize, value: u32) -> Result<()> {
    p.edit_extent_page(THICK, |page| put_u32(page, at, value))
}

/// An entry more or less at the end of a clone's extent page; its last entry is unallocated.
fn ep_length(p: &mut Patient, change: i32) -> Result<()> {
    p.edit_extent_page("clone1", |page| put_u32(page, 17, get_u32(page, 17).wrapping_add_signed(change)))
}

fn ep_like_root(p: &mut Patient) -> Result<()> {
    let index = p.extent_page(THICK)?;
    p.edit_page(index, |page| {
        put_u32(page, 0, index);
        put_u32(page, 4, 1);
        Ok(())
    })
}

fn ep_over_page0(p: &mut Patient) -> Result<()> {
    let index = p.extent_page(THICK)?;
    let page = p.raw_page(index).to_vec();
    p.raw_page(0).copy_from_slice(&page);
    Ok(())
}

/// Every unallocated entry of every extent page maps one and the same used cluster.
fn overcommit(p: &mut Patient) -> Result<()> {
    let cluster = p.cluster(THICK)?;
    for lvol in p.healthy.lvols().into_iter().filter(|lvol| !lvol.own_clusters.is_empty() && lvol.name != THICK) {
        p.edit_extent_page(&lvol.name, |page| {
            for entry in 0..get_u32(page, 17) as usize / 4 - 1 {
                if get_u32(page, 25 + entry * 4) == 0 {
                    put_u32(page, 25 + entry * 4, cluster);
                }
            }
        })?;
    }
    Ok(())
}

fn second_page(p: &Patient) -> Result<u32> {
    p.blob("snap1t")?.chain.get(1).copied().context("no second page")
}

fn chain_page(p: &mut Patient, at: usize, value: u32) -> Result<()> {
    let index = second_page(p)?;
    p.edit_page(index, |page| {
        put_u32(page, at, value);
        Ok(())
    })
}

fn raw_chain_page(p: &mut Patient) -> Result<()> {
    let index = second_page(p)?;
    p.raw_page(index)[2000] ^= 1;
    Ok(())
}

fn swap_extent_pages(p: &mut Patient) -> Result<()> {
    let pages: Vec<u32> = p.blob("thick5g")?.extent_pages.iter().take(2).map(|ep| ep.page).collect();
    let first = p.raw_page(pages[0]).to_vec();
    let second = p.raw_page(pages[1]).to_vec();
    p.raw_page(pages[0]).copy_from_slice(&second);
    p.raw_page(pages[1]).copy_from_slice(&first);
    Ok(())
}
