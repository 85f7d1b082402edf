//! The control surface from outside: the protocol and the command line against a server with a made-up controller, and
//! everything a hostile or clumsy client may do. It never touches a device and needs no root, but tests more with it.

mod bad_input;
mod command_line;
mod daemon;
mod fake;
mod hostile;
mod hung;
mod metadata;
mod parser;
mod rights;
