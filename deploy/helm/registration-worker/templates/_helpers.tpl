{{/* The name of a part: <release>-worker, ... */}}
{{- define "rw.name" -}}
{{ printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "rw.selector" -}}
app.kubernetes.io/name: registration-{{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "rw.labels" -}}
{{ include "rw.selector" . }}
app.kubernetes.io/part-of: registration-worker
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "rw.image" -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- end }}

{{/* Which secrets a part gets. Values of an older release, used again, do not say whether the gateway has
keys: then it has. */}}
{{- define "rw.secrets" -}}
{{- if eq .part "worker" -}}connections keys accounts
{{- else if and (eq .part "gateway") (ne (toString .root.Values.gateway.sealingKeys) "false") -}}connections keys
{{- else -}}connections
{{- end -}}
{{- end }}

{{/* Of a pod: who it runs as, and what it may do. */}}
{{- define "rw.pod" }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  # So that it can read the secrets' files, and nobody else.
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.topologyKeys }}
topologySpreadConstraints:
  {{- range . }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "rw.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Of a container: settings, secrets as files, a folder to write to. */}}
{{- define "rw.container" }}
image: {{ include "rw.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
envFrom:
  - configMapRef: {name: {{ include "rw.name" (dict "root" .root "part" "settings") }}}
env:
  {{- with .password }}
  # Without it Flower would ask nobody for a password; so the pod does not start.
  - name: FLOWER_BASIC_AUTH
    valueFrom:
      secretKeyRef: {name: {{ . }}, key: FLOWER_BASIC_AUTH}
  {{- end }}
  {{- $root := .root }}
  {{- range splitList " " (include "rw.secrets" .) }}
  {{- $group := . }}
  {{- range (index $root.Values.secrets .).settings }}
  - {name: {{ . }}_FILE, value: /etc/registration-worker/{{ $group }}/{{ . }}}
  {{- end }}
  {{- end }}
  {{- range $name, $value := .settings }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- range splitList " " (include "rw.secrets" .) }}
  {{- if (index $root.Values.secrets .).settings }}
  - {name: {{ . }}, mountPath: /etc/registration-worker/{{ . }}, readOnly: true}
  {{- end }}
  {{- end }}
{{- end }}

{{- define "rw.volumes" }}
- name: tmp
  emptyDir: {}
{{- $root := .root }}
{{- range splitList " " (include "rw.secrets" .) }}
{{- $found := index $root.Values.secrets . }}
{{- if $found.settings }}
- name: {{ . }}
  secret:
    secretName: {{ $found.secretName }}
    defaultMode: 0440
    items:
      {{- range $found.settings }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- end }}
{{- end }}
