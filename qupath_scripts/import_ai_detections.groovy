/*
 * Takes the regions that hnscc-qp found into the current image, as detections of class "AI: Tumor".
 *
 * Reads <project folder>/ai-detections/<entry id> <image name>.geojson. Earlier detections of ours are
 * replaced, unless a pathologist has touched them: one that was locked, named or given another
 * class stays as it is, and so does everything else in the image. Running it twice changes nothing.
 *
 * How to run it: drop this file on QuPath's window, then Run (the open image) or Run > Run for project
 * (all images). Without the window: QuPath script --project=project.qpproj --save import_ai_detections.groovy
 * For QuPath 0.4 to 0.7. For research use only, not for diagnosis.
 */
import qupath.lib.io.PathIO
import static qupath.lib.scripting.QP.getCurrentHierarchy
import static qupath.lib.scripting.QP.getProject
import static qupath.lib.scripting.QP.getProjectEntry

def entry = getProjectEntry()
if (entry == null) {
    println 'Open an image of a project first.'
    return
}
def image = entry.getImageName()

// The entry's id finds the file: an image may have been renamed in QuPath since.
def folder = getProject().getPath().getParent().resolve('ai-detections').toFile()
def files = (folder.listFiles() ?: []).findAll {
    it.getName().startsWith(entry.getID() + ' ') && it.getName().endsWith('.geojson')
}
if (files.isEmpty()) {
    println image + ': no AI detections in ' + folder + '; run: hnscc-qp push STUDY'
    return
}
def file = files.max { it.lastModified() }

// An id of version 5 is one that hnscc-qp gave; QuPath's own are of version 4.
def isUntouched = { item ->
    item.isDetection() && item.getID().version() == 5 && item.getPathClass()?.toString() == 'AI: Tumor' &&
        !item.isLocked() && item.getName() == null
}

def incoming = PathIO.readObjects(file)  // read all of it before anything is changed
def hierarchy = getCurrentHierarchy()
def present = hierarchy.getAllObjects(false)
def earlier = present.findAll { isUntouched(it) }
def earlierIds = earlier.collect { it.getID() } as Set
def keptIds = present.collect { it.getID() } as Set
keptIds.removeAll(earlierIds)

def wanted = incoming.findAll { !keptIds.contains(it.getID()) }
def kept = incoming.size() - wanted.size()
def replaced = wanted.count { earlierIds.contains(it.getID()) }
hierarchy.removeObjects(earlier, true)
hierarchy.addObjects(wanted)

println image + ': ' + (wanted.size() - replaced) + ' added, ' + replaced + ' replaced, ' +
    (earlier.size() - replaced) + ' removed, ' + kept + ' kept as the pathologist left them'
