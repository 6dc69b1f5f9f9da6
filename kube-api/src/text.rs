//! Schemas of strings with a form.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

/// A string of which only the schema matters: fields name it with `schemars(with = …)`.
macro_rules! text {
    ($name:ident, $pattern:expr, $max:expr) => {
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "minLength": 1, "maxLength": $max })
            }
        }
    };
}

text!(UuidText, "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", 36);
text!(NodeName, r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", crate::NODE_NAME_MAX);
text!(ObjectName, r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", crate::OBJECT_NAME_MAX);
text!(Label, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", 63);
text!(RequestName, r"^[^\x00-\x1f\x7f]+$", crate::REQUEST_NAME_MAX);
text!(PositiveSize, crate::size::POSITIVE, crate::size::LENGTH_MAX);
// A link that udev made, or a file name without a folder; neither can climb out of where it belongs.
text!(Device, r"^(/dev/disk/by-id/[A-Za-z0-9#+:=@_][A-Za-z0-9#+:=@_.\\-]*|[A-Za-z0-9][A-Za-z0-9._-]*)$", 255);
