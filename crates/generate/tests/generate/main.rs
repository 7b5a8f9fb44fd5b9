//! Folders, choices and text, as programs use them.

mod folder;
mod sample;
mod text;
