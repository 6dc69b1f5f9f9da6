//! Power cuts under the real binary, seen from outside: `coppice` works on a disk whose cache forgets (`disk`), the power
//! goes off at a random request, and what the disk kept is opened by the real binary again. It must open and check clean,
//! everything answered and everything fsynced is there, snapshots are unchanged, nothing deleted comes back, no space is
//! lost. Cut are also `lvstore create`, `seal`, `grow`, the driver's close, and recoveries. Copies of the image that are
//! taken while it is written to are no crash images: whatever they hold, no command may crash or hang on one.
//!
//! Needs root. A failure names its seed; a seed repeats the choices, not the timing of several threads:
//!
//!     COPPICE_POWER_CUT_SEED=N cargo test --release -p coppice --test power_cut -- --ignored
//!
//! Settings: `COPPICE_POWER_CUT_SECONDS` (60), `COPPICE_POWER_CUT_KEEP=DIR` (the image of a failure goes there).

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod life;
mod model;
mod writer;

use anyhow::{Context, Result};
use life::Life;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Cuts in the life of one store.
const CUTS_PER_LIFE: usize = 8;
/// A life that is not over by then hangs.
const LIFE_PATIENCE: Duration = Duration::from_secs(300);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute of power cuts; the step \"power-cuts\" of scripts/test.sh runs it"]
async fn power_cuts_lose_nothing_that_was_promised() -> Result<()> {
    let only = setting("COPPICE_POWER_CUT_SEED");
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let first = only.unwrap_or(clock % 1_000_000_000);
    let limit = Duration::from_secs(setting("COPPICE_POWER_CUT_SECONDS").unwrap_or(60));
    let (began, mut cuts, mut lives) = (Instant::now(), 0, 0);
    for seed in first.. {
        let mut life = Life::new(seed).with_context(|| format!("seed {seed}"))?;
        let lived = tokio::time::timeout(LIFE_PATIENCE, life.live(CUTS_PER_LIFE)).await;
        let lived = lived.unwrap_or_else(|_| Err(anyhow::anyhow!("hangs")));
        if let Err(e) = lived {
            if let Some(dir) = std::env::var_os("COPPICE_POWER_CUT_KEEP") {
                life.keep_image(&std::path::Path::new(&dir).join(format!("power-cut-{seed}.img")))?;
            }
            return Err(e.context(format!("COPPICE_POWER_CUT_SEED={seed} repeats it; {}", life.story())));
        }
        cuts += life.cuts;
        lives += 1;
        if only.is_some() || began.elapsed() > limit {
            break;
        }
    }
    println!("{lives} stores, {cuts} power cuts, seeds from {first}");
    anyhow::ensure!(cuts >= lives, "hardly any cut was made");
    Ok(())
}
