//! Tidy: what the house promises about itself, checked by reading it. Arrows between crates, vendors behind their ports, files
//! one can read in a sitting, and publications and documentation that say what the code does.

mod house;
mod pages;
mod published;
mod reading;
mod text;
