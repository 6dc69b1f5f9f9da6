//! The definitions of the kinds, as the API server takes them.

use crate::{Lvol, Lvstore};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

/// Both definitions, always in the same order.
pub fn crds() -> [CustomResourceDefinition; 2] {
    [Lvol::crd(), Lvstore::crd()].map(|mut crd| {
        for version in &mut crd.spec.versions {
            if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                tidy(schema);
            }
        }
        crd
    })
}

/// What the derived schema has and we do not mean.
fn tidy(schema: &mut JSONSchemaProps) {
    // What is optional may be left out, but not be null: `has()` in a rule would find it. Ours never write null.
    schema.nullable = None;
    if let Some(values) = schema.enum_.as_mut() {
        values.retain(|value| !value.0.is_null());
    }
    schema.title = None;
    // A line of a doc comment ends where the source does, not where a terminal does.
    schema.description = schema.description.take().map(|text| {
        let paragraphs: Vec<_> = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
        paragraphs.join("\n\n")
    });
    schema.properties.iter_mut().flatten().for_each(|(_, property)| tidy(property));
    match schema.items.as_mut() {
        Some(JSONSchemaPropsOrArray::Schema(item)) => tidy(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = schema.additional_properties.as_mut() {
        tidy(value);
    }
}
