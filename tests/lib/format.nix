# Fails if a Nix or Rust file isn't formatted.
{
  lib,
  nixfmt,
  runCommand,
  rustfmt,
}:
let
  source = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      (lib.fileset.fileFilter (file: file.hasExt "nix" || file.hasExt "rs") ../..)
      (lib.fileset.maybeMissing ../../rustfmt.toml)
    ];
  };
in
runCommand "format"
  {
    nativeBuildInputs = [
      nixfmt
      rustfmt
    ];
  }
  ''
    cd ${source}
    find . -name '*.nix' -exec nixfmt --check {} +
    find . -name '*.rs' -exec rustfmt --check --edition 2024 {} +
    touch $out
  ''
