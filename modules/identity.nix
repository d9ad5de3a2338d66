# What a replica has of its own: that which two VMs on one network or one host may not share.
#
# It is put over the finished config.microvm of one evaluated guest, and microvm.nix's runner builder makes a runner of
# it. So the guest is evaluated once and its disk built once: 30 replicas take 1.4 s longer to evaluate than one, where
# extendModules takes about 1 s for each. Host name and machine id reach the guest on the kernel's command line.
{ lib }:
let
  inherit (lib)
    concatStrings
    concatStringsSep
    drop
    fixedWidthString
    fromHexString
    genList
    splitString
    stringLength
    substring
    take
    toHexString
    toLower
    ;

  # Linux takes 15 characters; what is longer is cut and told apart by a hash.
  interfaceName =
    id: k:
    let
      name = "${id}-${toString k}";
    in
    if stringLength name <= 15 then
      name
    else
      "${substring 0 6 id}-${substring 0 8 (builtins.hashString "sha256" name)}";

  # k is added to the last three bytes.
  macAddress =
    mac: k:
    let
      bytes = splitString ":" mac;
      sum = lib.mod (fromHexString (concatStrings (drop 3 bytes)) + k) 16777216;
      hex = fixedWidthString 6 "0" (toLower (toHexString sum));
    in
    concatStringsSep ":" (take 3 bytes ++ genList (n: substring (2 * n) 2 hex) 3);

  machineId = instance: substring 0 32 (builtins.hashString "sha256" "blixard:${instance}");
  asUuid =
    id:
    concatStringsSep "-" [
      (substring 0 8 id)
      (substring 8 4 id)
      (substring 12 4 id)
      (substring 16 4 id)
      (substring 20 12 id)
    ];
in
# Replica k of the VM `name`, given the guest's config.microvm.
name: microvm: k:
let
  instance = "${name}-${toString k}";
in
{
  hostName = instance;
  machineId = asUuid (machineId instance);
  socket = if microvm.socket == null then null else "${instance}.sock";
  vsock = microvm.vsock // {
    cid = if microvm.vsock.cid == null then null else microvm.vsock.cid + k;
  };
  interfaces = map (
    interface:
    interface
    // {
      id = interfaceName interface.id k;
      mac = macAddress interface.mac k;
    }
  ) microvm.interfaces;
  kernelParams = microvm.kernelParams ++ [
    "systemd.hostname=${instance}"
    "systemd.machine_id=${machineId instance}"
  ];
  # They name the guest's interfaces, not the replica's; Blixard makes the taps itself.
  binScripts = removeAttrs microvm.binScripts [
    "tap-up"
    "tap-down"
  ];
}
