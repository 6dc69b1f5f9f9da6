//! `coppice crds`: the definitions of the Kubernetes kinds. The chart is checked against what this prints.

use crate::output::{self, Format};
use anyhow::{Context, Result};
use serde_json::json;

pub fn run(format: Format) -> Result<()> {
    match format {
        Format::Table => output::print(&yaml()?),
        // One object that kubectl applies, too.
        Format::Json => {
            output::print_json(&json!({ "apiVersion": "v1", "kind": "List", "items": coppice_kube_api::crds() }))
        }
    }
}

/// A document for each kind, always the same bytes for the same build.
fn yaml() -> Result<String> {
    let mut text = String::new();
    for crd in coppice_kube_api::crds() {
        // By way of a map whose keys are in order.
        let crd = serde_json::to_value(&crd).context("a definition as JSON")?;
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd).context("a definition as YAML")?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_was_meant() {
        let text = yaml().expect("text");
        assert_eq!(text, yaml().expect("text"));
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).expect("yaml");
        let meant: Vec<_> =
            coppice_kube_api::crds().iter().map(|crd| serde_json::to_value(crd).expect("json")).collect();
        assert_eq!(documents, meant);
        assert!(text.starts_with("---\n") && text.ends_with('\n') && text.matches("\n---\n").count() == 1);
        assert!(text.lines().all(|line| line == line.trim_end()), "a space at the end of a line");
    }

    /// The CSI services know the key from their own crate, which knows nothing of Kubernetes' API.
    #[test]
    fn the_topology_key_is_one() {
        assert_eq!(coppice_kube_api::TOPOLOGY_NODE, coppice_proto::capability::TOPOLOGY_NODE);
    }
}
