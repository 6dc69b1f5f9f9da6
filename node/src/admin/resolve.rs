//! From what a person writes to a lvstore or lvol.

use coppice_engine::{LvolInfo, LvolState, Store};
use coppice_proto::status::from_engine;
use tonic::Status;
use uuid::Uuid;

/// A lvstore by UUID or name; an empty name stands for the only one.
pub fn store(stores: &[Store], name: &str) -> Result<Store, Status> {
    let known = || stores.iter().map(Store::name).collect::<Vec<_>>().join(", ");
    if name.is_empty() {
        return match stores {
            [only] => Ok(only.clone()),
            _ => Err(Status::invalid_argument(format!("say which lvstore: there are {}", known()))),
        };
    }
    let by_id = Uuid::parse_str(name).ok();
    let found = stores.iter().find(|store| store.name() == name || by_id == Some(store.uuid()));
    found.cloned().ok_or_else(|| Status::not_found(format!("there is no lvstore {name:?}; there are: {}", known())))
}

/// A lvol by UUID, alias, or name where it is unique. Hidden ones only by UUID.
pub async fn lvol(stores: &[Store], name: &str) -> Result<(Store, LvolInfo), Status> {
    if name.is_empty() {
        return Err(Status::invalid_argument("say which lvol, by UUID, alias (lvstore/name) or name"));
    }
    let id = Uuid::parse_str(name).ok();
    let mut found = Vec::new();
    for store in stores {
        for lvol in store.lvols().await.map_err(|e| from_engine(&e))? {
            let seen = lvol.state != LvolState::Hidden;
            if id == Some(lvol.uuid) {
                return Ok((store.clone(), lvol));
            }
            if seen && (lvol.alias == name || lvol.name == name) {
                found.push((store.clone(), lvol));
            }
        }
    }
    // An alias is more than a name: `a/b` is the lvol b of a, even if some lvol is called `a/b`.
    if let Some(at) = found.iter().position(|(_, lvol)| lvol.alias == name) {
        return Ok(found.swap_remove(at));
    }
    if found.len() > 1 {
        let all: Vec<&str> = found.iter().map(|(_, lvol)| lvol.alias.as_str()).collect();
        return Err(Status::invalid_argument(format!("{name:?} is not unique: say one of {}", all.join(", "))));
    }
    found.pop().ok_or_else(|| Status::not_found(format!("there is no lvol {name:?}; see coppice lvol ls")))
}
