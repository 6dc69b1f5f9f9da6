//! What an answer looks like: objects as YAML or JSON, ages, and tables.

use super::args::Output;
use crate::output;
use anyhow::{Context, Result};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::{Value, json};

/// Objects as kubectl prints them: one as itself, several as a List. False if a table was asked for.
pub fn objects(format: Output, objects: &[Value], list: bool) -> Result<bool> {
    let whole = match objects {
        [one] if !list => one.clone(),
        all => json!({ "apiVersion": "v1", "kind": "List", "items": all }),
    };
    match format {
        Output::Json => output::print_json(&whole)?,
        Output::Yaml => output::print(&yaml(&whole)?)?,
        Output::Table | Output::Wide => return Ok(false),
    }
    Ok(true)
}

pub fn yaml(value: &impl Serialize) -> Result<String> {
    serde_saphyr::to_string(value).context("an object as YAML")
}

/// Several objects as documents, as `kubectl apply` takes them.
pub fn documents(objects: &[Value]) -> Result<String> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&yaml(object)?);
    }
    Ok(text)
}

/// An object without what the API server keeps for itself.
pub fn object(of: &impl Serialize) -> Result<Value> {
    let mut object = serde_json::to_value(of).context("an object as JSON")?;
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    Ok(object)
}

/// A line for a person, at once.
pub fn say(line: &str) -> Result<()> {
    output::print(&format!("{}\n", output::clean(line)))
}

/// `45s`, `12m`, `5h`, `3d`: how long ago it was.
pub fn age(time: Option<&Time>, now: jiff::Timestamp) -> String {
    let Some(time) = time else { return "–".to_string() };
    let seconds = (now.as_second() - time.0.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// `–` where there is nothing to show.
pub fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "–".to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let at = |second| jiff::Timestamp::from_second(second).expect("a time");
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d"), (-5, "0s")] {
            assert_eq!(age(Some(&Time(at(1000))), at(1000 + seconds)), text);
        }
        assert_eq!(age(None, at(0)), "–");
    }
}
