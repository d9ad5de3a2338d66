# What would go wrong with a VM on some host, or between two VMs, and is refused when the system is built.
{ config, lib, ... }:
let
  inherit (lib)
    all
    concatLists
    concatMap
    concatMapStringsSep
    elem
    filterAttrs
    genList
    groupBy
    hasInfix
    hasPrefix
    head
    length
    mapAttrsToList
    ;
  cfg = config.services.blixard;
  hypervisors = import ./hypervisors.nix;
  identity = import ./identity.nix { inherit lib; };

  vms = if cfg.vms == null then { } else cfg.vms;
  guests = filterAttrs (_: vm: vm.config != null) vms;

  isLabel = name: builtins.match "[a-z0-9]([a-z0-9-]{0,55}[a-z0-9])?" name != null;

  # What would be refused, or go wrong, only on a host is refused here.
  ofVm =
    name: vm:
    let
      option = "services.blixard.vms.${name}";
      given = lib.count lib.id [
        (vm.config != null)
        vm.stated.runners
      ];
      replicas = length vm.runners;
    in
    [
      {
        assertion = isLabel name;
        message = ''
          ${option}: "${name}" isn't a DNS label of at most 57 characters.
          Rename the VM to lower-case letters, digits and inner hyphens.
        '';
      }
      {
        assertion = given == 1;
        message = ''
          ${option} has ${if given == 0 then "neither config nor runners" else "both config and runners"}.
          Set exactly one of them: config for a microvm.nix guest, runners for ready ones.
        '';
      }
    ]
    ++ lib.optionals (given == 1 && vm.config == null) [
      {
        assertion = vm.runners != [ ] && replicas == vm.replicas;
        message = ''
          ${option} has ${toString replicas} runners for ${toString vm.replicas} replicas.
          List one runner for each replica, or leave replicas out.
        '';
      }
      {
        assertion = vm.stated.vcpus && vm.stated.memoryMiB;
        message = ''
          ${option} has ready runners, which don't say how large the guest is.
          State ${option}.vcpus and ${option}.memoryMiB.
        '';
      }
    ]
    ++ lib.optionals (given == 1 && vm.config != null) (ofGuest option vm);

  ofGuest =
    option: vm:
    let
      inherit (vm.evaluated.config) microvm;
      tags = concatMapStringsSep ", " (share: share.tag);
      otherInterfaces = lib.filter (
        interface:
        !(elem interface.type [
          "tap"
          "user"
        ])
      ) microvm.interfaces;
      otherShares = lib.filter (share: share.proto != "9p" || !share.readOnly) microvm.shares;
      strayVolumes = lib.filter (
        volume: hasPrefix "/" volume.image || hasInfix ".." volume.image
      ) microvm.volumes;
      badMacs = lib.filter (
        interface: builtins.match "([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}" interface.mac == null
      ) microvm.interfaces;
    in
    [
      {
        assertion = !(vm.stated.vcpus || vm.stated.hypervisor);
        message = ''
          ${option}: vcpus and hypervisor are read from the guest.
          Set microvm.vcpu and microvm.hypervisor in ${option}.config instead.
        '';
      }
      {
        assertion = vm.memoryMiB >= microvm.mem;
        message = ''
          ${option}: memoryMiB (${toString vm.memoryMiB}) is less than the guest has (${toString microvm.mem}).
          Leave it out, or lower microvm.mem in ${option}.config.
        '';
      }
      {
        assertion = elem microvm.hypervisor hypervisors;
        message = ''
          ${option}: the hypervisor "${microvm.hypervisor}" doesn't run on Linux hosts.
          Set microvm.hypervisor in ${option}.config to one of ${toString hypervisors}.
        '';
      }
      {
        assertion = otherInterfaces == [ ];
        message = ''
          ${option}: the interface "${(head otherInterfaces).id}" is of type "${(head otherInterfaces).type}", which Blixard doesn't make.
          Use type = "tap", which is attached to services.blixard.settings.vms.bridge, or "user".
        '';
      }
      {
        assertion = badMacs == [ ];
        message = ''
          ${option}: "${(head badMacs).mac}" isn't a MAC address.
          Write the mac of the interface "${(head badMacs).id}" as six bytes, for example "02:00:00:00:00:10".
        '';
      }
      {
        assertion = otherShares == [ ];
        message = ''
          ${option}: the share ${tags otherShares} ties the VM to one host's files, or needs a virtiofs daemon, which Blixard doesn't start.
          Use a volume, or a share with proto = "9p" and readOnly = true.
        '';
      }
      {
        assertion = strayVolumes == [ ];
        message = ''
          ${option}: the volume "${(head strayVolumes).image}" isn't below the VM's working directory, where alone it may write.
          Give its image as a plain file name, for example "data.img".
        '';
      }
      {
        assertion = microvm.devices == [ ];
        message = ''
          ${option}: the device "${(head microvm.devices).path}" is passed through from one host, but the VM may run on any.
          Remove it from microvm.devices in ${option}.config.
        '';
      }
      {
        assertion = microvm.user == null;
        message = ''
          ${option}: microvm.user is "${toString microvm.user}", but the hypervisor already runs as an ordinary user and can't become another.
          Remove microvm.user from ${option}.config.
        '';
      }
    ];

  # Two VMs of this manifest may meet on one host, and all of them on one network.
  identities = concatLists (
    mapAttrsToList (
      name: vm: genList (k: identity name vm.evaluated.config.microvm k // { inherit name; }) vm.replicas
    ) guests
  );
  interfaces = concatMap (
    identity: map (interface: interface // { vm = identity.hostName; }) identity.interfaces
  ) identities;
  taken =
    what: fix: of: owners:
    mapAttrsToList (value: same: {
      assertion = length same == 1;
      message = ''
        services.blixard.vms: ${
          concatMapStringsSep " and " (owner: owner.vm or owner.hostName) same
        } have the same ${what}, ${value}.
        ${fix}
      '';
    }) (groupBy (owner: toString (of owner)) owners);

  apart = concatLists [
    (taken "MAC address"
      "Replica K adds K to the guest's mac: leave as many addresses free after each mac as its VM has replicas."
      (interface: lib.toLower interface.mac)
      interfaces
    )
    (taken "tap" "Give their interfaces different ids." (interface: interface.id) (
      lib.filter (interface: interface.type == "tap") interfaces
    ))
    (taken "vsock id"
      "Replica K adds K to the guest's microvm.vsock.cid: leave as many ids free after each as its VM has replicas."
      (identity: identity.vsock.cid)
      (lib.filter (identity: identity.vsock.cid != null) identities)
    )
    (taken "runner" "List every runner once." (owner: owner.runner) (
      concatLists (
        mapAttrsToList (
          vm: spec:
          lib.imap0 (k: runner: {
            inherit runner;
            vm = "${vm}-${toString k}";
          }) (lib.optionals (spec.config == null) spec.runners)
        ) vms
      )
    ))
  ];
  sound = all (assertion: assertion.assertion);
  each = concatLists (mapAttrsToList ofVm vms);
in
{
  # Identities are only compared once every VM can have some.
  config = lib.mkIf (cfg.enable or true) {
    assertions = each ++ lib.optionals (sound each) apart;
  };
}
