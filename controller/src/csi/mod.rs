//! The gRPC services of the controller. They translate, and nothing else.

mod controller;
mod identity;
mod status;

pub use controller::ControllerService;
pub use identity::IdentityService;
