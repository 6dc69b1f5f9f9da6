//! What the API server asks of a definition before it takes it, as far as it can be seen without one.

use coppice_kube_api::*;
use serde_json::Value;

/// All that our schemas are made of. Others may be fine, too, but nobody has looked yet.
const KEYWORDS: [&str; 17] = [
    "default",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-validations",
];

fn definitions() -> Vec<Value> {
    crds().iter().map(|crd| serde_json::to_value(crd).expect("json")).collect()
}

fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// Calls `look` for every schema within `schema`.
fn walk(path: &str, schema: &Value, look: &mut dyn FnMut(&str, &Value)) {
    look(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, look);
    }
    if let Some(items) = schema.get("items") {
        walk(&format!("{path}[]"), items, look);
    }
}

#[test]
fn the_schemas_are_structural() {
    for definition in definitions() {
        walk("", schema(&definition), &mut |path, schema| {
            for keyword in schema.as_object().expect("a schema").keys() {
                assert!(KEYWORDS.contains(&keyword.as_str()), "{path}: {keyword}");
            }
            let kind = schema["type"].as_str().unwrap_or_default();
            assert!(["object", "array", "string", "integer", "boolean"].contains(&kind), "{path}: type {kind:?}");
            assert_eq!(kind == "object", schema["properties"].is_object(), "{path}: an object without fields");
            assert_eq!(kind == "array", schema["items"].is_object(), "{path}: a list without items");
            for required in schema["required"].as_array().into_iter().flatten() {
                assert!(schema["properties"][required.as_str().expect("a name")].is_object(), "{path}: {required}");
            }
            let values = || schema["enum"].as_array().into_iter().flatten();
            assert!(values().all(Value::is_string), "{path}: {}", schema["enum"]);
            if let Some(default) = schema.get("default") {
                assert!(default.is_boolean() || values().any(|value| value == default), "{path}: {default}");
            }
            // Formats that the API server does not know are not checked by it.
            let format = schema["format"].as_str();
            assert!(
                format.is_none_or(|format| ["date-time", "int32", "int64"].contains(&format)),
                "{path}: {format:?}"
            );
        });
    }
}

/// A rule costs what its input may be large; a list or text without a limit makes it too expensive to be taken.
#[test]
fn everything_of_ours_has_a_limit_and_an_explanation() {
    for definition in definitions() {
        walk("", schema(&definition), &mut |path, schema| {
            assert!(schema["description"].as_str().is_some_and(|text| text.len() > 10), "{path}: no description");
            let description = schema["description"].as_str().unwrap_or_default();
            assert!(path.contains("conditions[]") || !description.contains('\n'), "{path}: {description}");
            let limited = match schema["type"].as_str() {
                Some("array") => schema["maxItems"].is_u64(),
                Some("string") => {
                    schema["maxLength"].is_u64() || schema["enum"].is_array() || schema["format"] == "date-time"
                }
                _ => true,
            };
            assert!(limited || path.contains("conditions[]"), "{path}: no limit");
        });
    }
}

#[test]
fn rules_say_what_they_want() {
    for definition in definitions() {
        let mut rules = 0;
        walk("", schema(&definition), &mut |path, schema| {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                assert!(rule["message"].as_str().is_some_and(|message| !message.is_empty()), "{path}: {rule}");
                rules += 1;
            }
        });
        assert!(rules >= 6, "{rules} rules");
    }
}

/// A column or selector that leads nowhere stays empty without a word.
#[test]
fn columns_and_selectors_lead_somewhere() {
    for definition in definitions() {
        let version = &definition["spec"]["versions"][0];
        let columns = version["additionalPrinterColumns"].as_array().expect("columns").iter();
        let selectors = version["selectableFields"].as_array().expect("selectors").iter();
        for path in columns.chain(selectors).map(|one| one["jsonPath"].as_str().expect("a path")) {
            if path.starts_with(".metadata.") {
                assert!(
                    [".metadata.creationTimestamp", r".metadata.annotations.coppice\.io/pvc"].contains(&path),
                    "{path}"
                );
                continue;
            }
            let (fields, _) = path.split_once("[?").unwrap_or((path, ""));
            let mut at = schema(&definition);
            for field in fields.trim_start_matches('.').split('.') {
                at = &at["properties"][field];
            }
            assert!(at.is_object(), "{path}");
        }
    }
    assert_eq!(ANNOTATION_PVC, "coppice.io/pvc");
}

#[test]
fn names_are_what_the_code_says() {
    let selectable = |definition: &Value| -> Vec<String> {
        let fields = definition["spec"]["versions"][0]["selectableFields"].as_array().expect("selectors").clone();
        fields
            .iter()
            .map(|field| field["jsonPath"].as_str().expect("a path").trim_start_matches('.').to_string())
            .collect()
    };
    let [lvol, lvstore] = &definitions()[..] else { panic!("two kinds") };
    assert_eq!(lvol["metadata"]["name"], "lvols.coppice.io");
    assert_eq!(lvstore["metadata"]["name"], "lvstores.coppice.io");
    assert_eq!(selectable(lvol), [SELECT_NODE, SELECT_SOURCE_NODE, SELECT_LVSTORE]);
    assert_eq!(selectable(lvstore), [SELECT_NODE]);
    for definition in [lvol, lvstore] {
        let (spec, version) = (&definition["spec"], &definition["spec"]["versions"][0]);
        assert_eq!((&spec["group"], &spec["scope"]), (&GROUP.into(), &"Cluster".into()));
        assert_eq!((&version["name"], &version["subresources"]["status"]), (&VERSION.into(), &serde_json::json!({})));
    }
}

/// One object that passes the schema and does not parse would stop a watch: the schema must not admit more than Rust.
#[test]
fn the_schema_admits_no_size_that_does_not_parse() {
    for largest in ["999999999999999999", "999999999999999Ki", "999999999999Mi", "999999999Gi", "999999Ti", "999999T"] {
        assert!(largest.parse::<ByteSize>().is_ok_and(|size| size.bytes() < i64::MAX as u64), "{largest}");
    }
}
