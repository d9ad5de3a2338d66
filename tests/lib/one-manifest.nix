# Fails if two hosts carry different manifests: the cluster would hold one of them back at every switch.
{
  lib,
  runCommand,
  # name → NixOS configuration
  hosts,
}:
let
  carried = lib.filterAttrs (_: file: file != null) (
    lib.mapAttrs (_: host: host.config.services.blixard.manifestFile) hosts
  );
  byManifest = lib.groupBy (name: builtins.unsafeDiscardStringContext "${carried.${name}}") (
    lib.attrNames carried
  );
in
if lib.length (lib.attrNames byManifest) <= 1 then
  runCommand "one-manifest" { } "touch $out"
else
  throw ''
    Hosts carry different manifests: ${
      lib.concatMapStringsSep "; " (lib.concatStringsSep ", ") (lib.attrValues byManifest)
    }.
    Give all of them what one lib.mkManifest returns, or the same services.blixard.vms.
  ''
