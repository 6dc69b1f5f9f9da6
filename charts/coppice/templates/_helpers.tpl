{{/* Names are fixed, not made from the release's: a cluster has one driver csi.coppice.io, and so one of everything. */}}

{{- define "coppice.labels" -}}
app.kubernetes.io/name: coppice
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What pods are selected by; never changes. */}}
{{- define "coppice.selector" -}}
app.kubernetes.io/name: coppice
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "coppice.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The name that the API server knows a service account by. */}}
{{- define "coppice.account" -}}
system:serviceaccount:{{ .root.Release.Namespace }}:{{ .name }}
{{- end }}

{{/* Liveness, readiness and, given seconds, startup of the container of ours, over http. */}}
{{- define "coppice.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{- define "coppice.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* A sidecar of the controller: root, name, and the arguments that not all of them have. */}}
{{- define "coppice.sidecar" -}}
{{- $values := get .root.Values.sidecars .name -}}
- name: {{ .name }}
  image: {{ $values.image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --leader-election
    - --http-endpoint=0.0.0.0:{{ $values.port }}
    # CreateVolume waits for a node; a back-off that doubles for minutes would be felt by people.
    - --timeout=60s
    - --retry-interval-max=30s
    - --kube-api-qps={{ .root.Values.sidecars.apiQPS }}
    - --kube-api-burst={{ mul 2 .root.Values.sidecars.apiQPS }}
    {{- range concat .args $values.extraArgs }}
    - {{ . }}
    {{- end }}
  env:
    # Owner of the CSIStorageCapacity objects, and where the leases are.
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  ports:
    - {name: {{ .name }}, containerPort: {{ $values.port }}}
  livenessProbe:
    httpGet: {path: /healthz/leader-election, port: {{ .name }}}
    initialDelaySeconds: 20
    periodSeconds: 20
    timeoutSeconds: 10
  securityContext: {{- include "coppice.unprivileged" . | nindent 4 }}
  resources: {{- toYaml .root.Values.sidecars.resources | nindent 4 }}
  volumeMounts:
    - {name: csi, mountPath: /csi}
{{- end }}
