//! The compiled contract against a list of the standard's facts: every message, field number and type, enum value,
//! reserved number and call. What is in one and not in the other fails, so a typo in `csi.proto` cannot survive.

use anyhow::{Context, Result};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use std::collections::BTreeSet;

const FACTS: &str = include_str!("csi-1.13.facts");

fn short(type_name: &str) -> String {
    type_name.strip_prefix(".csi.v1.").or_else(|| type_name.strip_prefix('.')).unwrap_or(type_name).to_string()
}

fn enum_facts(e: &EnumDescriptorProto, prefix: &str, out: &mut BTreeSet<String>) {
    for value in &e.value {
        out.insert(format!("enum {prefix}{}.{} {}", e.name(), value.name(), value.number()));
    }
}

fn message_facts(message: &DescriptorProto, prefix: &str, out: &mut BTreeSet<String>) -> Result<()> {
    if message.options.as_ref().is_some_and(|o| o.map_entry()) {
        return Ok(());
    }
    let name = format!("{prefix}{}", message.name());
    out.insert(format!("message {name}"));
    for range in &message.reserved_range {
        for number in range.start()..range.end() {
            out.insert(format!("reserved {name} {number}"));
        }
    }
    for field in &message.field {
        let is_map = message.nested_type.iter().any(|nested| {
            nested.options.as_ref().is_some_and(|o| o.map_entry())
                && field.type_name().ends_with(&format!(".{}.{}", message.name(), nested.name()))
        });
        let head = format!("field {name}.{} {}", field.name(), field.number());
        if is_map {
            out.insert(format!("{head} map"));
            continue;
        }
        let kind = match field.r#type() {
            Type::String => "string".to_string(),
            Type::Int32 => "int32".to_string(),
            Type::Int64 => "int64".to_string(),
            Type::Bool => "bool".to_string(),
            Type::Message | Type::Enum => short(field.type_name()),
            other => format!("{other:?}"),
        };
        let repeated = if field.label() == Label::Repeated { "repeated " } else { "" };
        let oneof = match field.oneof_index {
            Some(index) => {
                let decl = message.oneof_decl.get(usize::try_from(index)?).context("oneof index")?;
                format!(" oneof {}", decl.name())
            }
            None => String::new(),
        };
        out.insert(format!("{head} {repeated}{kind}{oneof}"));
    }
    for nested in &message.nested_type {
        message_facts(nested, &format!("{name}."), out)?;
    }
    for e in &message.enum_type {
        enum_facts(e, &format!("{name}."), out);
    }
    Ok(())
}

fn file_facts(file: &FileDescriptorProto) -> Result<BTreeSet<String>> {
    let mut out = BTreeSet::new();
    for message in &file.message_type {
        message_facts(message, "", &mut out)?;
    }
    for e in &file.enum_type {
        enum_facts(e, "", &mut out);
    }
    for service in &file.service {
        out.insert(format!("service {}", service.name()));
        for call in &service.method {
            assert!(!call.client_streaming());
            let stream = if call.server_streaming() { "stream " } else { "" };
            let (input, output) = (short(call.input_type()), short(call.output_type()));
            out.insert(format!("rpc {}.{} {input} {stream}{output}", service.name(), call.name()));
        }
    }
    Ok(out)
}

#[test]
fn csi_is_the_standard() -> Result<()> {
    let set: FileDescriptorSet = prost::Message::decode(coppice_proto::DESCRIPTORS)?;
    let file = set.file.iter().find(|f| f.package() == "csi.v1").context("csi.v1 is not among the descriptors")?;
    let ours = file_facts(file)?;
    let facts: BTreeSet<String> = FACTS.lines().map(str::to_string).collect();
    assert!(facts.len() > 400, "the list of facts is cut short: {}", facts.len());
    let missing: Vec<_> = facts.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&facts).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nextra: {extra:#?}");
    Ok(())
}
